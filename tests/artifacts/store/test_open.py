"""A location says which kind of store is there."""

from __future__ import annotations

from pathlib import Path

from artifacts.store.ancestors import lineage
from artifacts.store.local import LocalStore
from artifacts.store.open import open_store
from artifacts.store.s3.store import S3Store
from tests.support.s3_parts import commit
from tests.support.s3_server import Server


def test_a_location_without_a_scheme_is_a_folder(tmp_path: Path) -> None:
    assert open_store(str(tmp_path)).location == str(tmp_path)


def test_a_location_opens_an_s3_store(server: Server, s3: S3Store, source: LocalStore) -> None:
    opened = open_store(s3.location)
    assert isinstance(opened, S3Store)
    assert opened.location == s3.location
    opened.push(source, commit(source).digest)
    assert lineage(s3, s3.digests()) == s3.digests()
