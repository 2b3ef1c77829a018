"""A blob is in the store and young after a push, whatever the server knows."""

from __future__ import annotations

import time

import pytest

from artifacts.store.local import LocalStore
from artifacts.store.protocol import Problem
from artifacts.store.s3 import upload
from artifacts.store.s3.store import S3Store
from tests.support.s3_parts import (
    CONTENT,
    LARGE,
    at,
    commit,
    files_of,
    flipped,
    overwrite,
    sha256,
)
from tests.support.s3_server import credentials, running


def test_an_old_blob_is_made_young_when_it_is_needed_again(
    s3: S3Store, source: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.push(source, commit(source).digest)
    before = {held.name: held.modified for held in s3.inventory("blobs")}
    time.sleep(1.1)
    monkeypatch.setattr(upload, "YOUNG_SECONDS", 0.0)
    assert s3.push(source, commit(source).digest) == 0
    assert all(held.modified > before[held.name] for held in s3.inventory("blobs"))
    assert s3.verify(s3.digests()[0]) == []


@pytest.mark.parametrize(
    "kind",
    [
        {"checksums": False},
        {"opaque_etags": True},
        {"checksums": False, "opaque_etags": True},
        {"conditions": False},
    ],
)
def test_servers_that_know_less_hold_artifacts_all_the_same(
    kind: dict[str, bool], source: LocalStore, target: LocalStore
) -> None:
    digest = commit(source).digest
    with credentials(), running(**kind, smallest_part=1) as server:  # type: ignore[arg-type]
        store = at(server.location("a"))
        store.push(source, digest)
        read_back = {
            seen.path.rpartition("/")[2]
            for seen in server.requests("GET", "blobs/sha256/")
            if "upload" not in seen.query
        }
        proves_nothing = kind == {"checksums": False, "opaque_etags": True}
        assert read_back == (
            {sha256(data) for data in CONTENT.values() if data} if proves_nothing else set()
        )
        assert store.push(source, digest) == 0
        assert files_of(store.pull(digest, target)) == CONTENT
        overwrite(store, sha256(LARGE), flipped(LARGE))
        assert store.verify(digest) == [Problem("changed", "weights/large")]
