"""Only what a folder lacks is fetched, and only if there is room."""

from __future__ import annotations

import pytest

from artifacts.manifest import FileEntry, Manifest
from artifacts.store.local import LocalStore
from artifacts.store.s3.store import S3Store
from configs.errors import DiskFull
from tests.support.s3_parts import (
    CONTENT,
    commit,
    sha256,
)
from tests.support.s3_server import Server


def test_a_folder_that_has_a_file_does_not_fetch_it_again(
    server: Server, s3: S3Store, source: LocalStore, target: LocalStore
) -> None:
    s3.push(source, commit(source).digest)
    s3.pull(commit(source).digest, target)
    more = commit(source, CONTENT | {"new": b"new"}).digest
    s3.push(source, more)
    server.forget()
    s3.pull(more, target)
    assert [seen.path.rpartition("/")[2] for seen in server.requests("GET", "blobs/")] == [
        sha256(b"new")
    ]


def test_a_pull_that_cannot_fit_is_refused_before_anything_is_fetched(
    server: Server, s3: S3Store, target: LocalStore
) -> None:
    manifest = Manifest(
        kind="fp16", files=(FileEntry(path="weights", size=1 << 44, sha256="0" * 64),)
    )
    s3._put_manifest(manifest)
    with pytest.raises(DiskFull, match=r"GB are to be fetched.*->"):
        s3.pull(manifest.digest, target)
    assert server.requests("GET", "blobs/") == []
