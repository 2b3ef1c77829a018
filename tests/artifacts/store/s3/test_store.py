"""What an S3 store promises beyond what all do (`tests/artifacts/store/test_protocol.py`)."""

from __future__ import annotations

import time

import pytest

from artifacts.store.layout import blob_key
from artifacts.store.local import LocalStore
from artifacts.store.s3.store import S3Store
from configs.errors import ArtifactDamaged
from tests.support.s3_parts import (
    CONTENT,
    DISTINCT,
    LARGE,
    at,
    begun,
    commit,
    files_of,
    flipped,
    overwrite,
    sha256,
)
from tests.support.s3_server import Server


def test_a_bucket_without_a_prefix_is_a_store(
    server: Server, source: LocalStore, target: LocalStore
) -> None:
    bucket = at(server.location())
    client = bucket.bucket.client
    client.create_bucket(Bucket="whole-bucket")
    whole = at(server.location(bucket="whole-bucket"))
    digest = commit(source).digest
    whole.push(source, digest)
    assert files_of(whole.pull(digest, target)) == CONTENT


def test_uploads_that_nobody_goes_on_with_are_given_up(s3: S3Store) -> None:
    begun(s3)
    assert s3.clear_leftovers(older_than=time.time() - 60) == 0
    assert s3.clear_leftovers(older_than=time.time() + 60) == 1
    assert s3.clear_leftovers(older_than=time.time() + 60) == 0


def test_a_blob_that_is_collected_while_others_are_sent_is_sent_again(
    s3: S3Store, source: LocalStore
) -> None:
    small = sha256(CONTENT["weights/small"])
    s3.push(source, commit(source, {"small": CONTENT["weights/small"]}).digest)
    seen: list[float] = []

    def collect(fraction: float, _text: str) -> None:
        if not seen:
            overwrite(s3, small, None)
        seen.append(fraction)

    digest = commit(source).digest
    assert s3.push(source, digest, collect) == DISTINCT
    assert s3.verify(digest) == []
    assert seen == sorted(seen)


def test_deleting_the_object_that_an_error_names_and_pushing_again_heals(
    s3: S3Store, source: LocalStore, target: LocalStore
) -> None:
    digest = commit(source).digest
    s3.push(source, digest)
    overwrite(s3, sha256(LARGE), flipped(LARGE))
    with pytest.raises(ArtifactDamaged) as error:
        s3.pull(digest, target)
    key = s3.bucket.key(blob_key(sha256(LARGE)))
    assert key in error.value.hint
    s3.bucket.client.delete_object(Bucket=s3.bucket.name, Key=key)
    s3.push(source, digest)
    assert s3.verify(digest) == []
