"""A bucket has the layout of a folder."""

from __future__ import annotations

from artifacts.store.local import LocalStore
from artifacts.store.s3.store import S3Store
from tests.support.s3_parts import commit
from tests.support.s3_server import Server


def test_the_layout_is_the_local_stores(server: Server, s3: S3Store, source: LocalStore) -> None:
    digest = commit(source).digest
    s3.push(source, digest)
    here = {
        path.relative_to(source.root).as_posix()
        for part in ("blobs", "manifests")
        for path in (source.root / part).rglob("*")
        if path.is_file()
    }
    assert {item.key for item in s3.bucket.below("")} == here
