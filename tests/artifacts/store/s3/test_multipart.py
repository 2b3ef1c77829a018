"""A large file goes in parts, and what an interrupted upload has finished is not sent again."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from artifacts.store.local import LocalStore
from artifacts.store.s3.store import S3Store
from configs.errors import TransferError
from tests.support.faulty_proxy import Fault, in_front_of
from tests.support.s3_parts import (
    DISTINCT,
    LARGE,
    PART,
    at,
    begun,
    commit,
    flipped,
    nothing_is_visible,
    sha256,
)
from tests.support.s3_server import BUCKET, Server, credentials, running


def test_nothing_is_sent_twice_and_parts_go_side_by_side(
    server: Server, source: LocalStore, tmp_path: Path
) -> None:
    digest = commit(source).digest
    with in_front_of(server.url, Fault("slow", "PUT", "partNumber", rate=2e6)) as proxy:
        store = at(f"s3://{BUCKET}/{tmp_path.name}?endpoint_url={proxy.url}")
        server.forget()
        store.push(source, digest)
        assert sum(seen.size for seen in server.requests("PUT", "blobs/")) == DISTINCT
        assert len(server.requests("PUT", query="partNumber")) == 6
        assert proxy.most_at_once > 1
        server.forget()
        store.push(source, digest)
        assert [seen.path.rpartition("/")[2] for seen in server.requests("PUT")] == [
            f"{digest}.json"
        ]


def test_an_interrupted_upload_goes_on_without_its_finished_parts(
    server: Server, source: LocalStore, tmp_path: Path
) -> None:
    digest = commit(source).digest
    with in_front_of(server.url, Fault("reset upload", "PUT", "partNumber=[56]")) as proxy:
        with pytest.raises(TransferError, match="->"):
            at(f"s3://{BUCKET}/{tmp_path.name}?endpoint_url={proxy.url}").push(source, digest)
        store = at(server.location(tmp_path.name))
        assert nothing_is_visible(store)
        finished = server.requests("PUT", sha256(LARGE), "partNumber")
        server.forget()
        store.push(source, digest)
    sent = server.requests("PUT", sha256(LARGE), "partNumber")
    assert finished
    assert sorted(seen.query.split("partNumber=")[1][0] for seen in (*finished, *sent)) == list(
        "123456"
    )
    assert sum(seen.size for seen in (*finished, *sent)) == len(LARGE)
    assert store.verify(digest) == []


def test_a_part_that_somebody_else_sent_with_other_bytes_is_sent_again(
    s3: S3Store, source: LocalStore
) -> None:
    digest = commit(source).digest
    client, upload = begun(s3)
    client.upload_part(**upload, PartNumber=1, Body=flipped(LARGE[:PART]))
    client.upload_part(**upload, PartNumber=2, Body=LARGE[PART : 2 * PART])
    s3.push(source, digest)
    assert s3.verify(digest) == []


@pytest.mark.parametrize("ceph", [False, True])
def test_an_upload_that_ends_after_it_was_listed_is_no_obstacle(
    ceph: bool, source: LocalStore, tmp_path: Path
) -> None:
    """Another pusher has completed it, or a collection has ended it."""
    digest = commit(source).digest
    with credentials(), running(ceph=ceph, smallest_part=1) as server:
        s3 = at(server.location(tmp_path.name))
        uploads = [begun(at(s3.location)) for _ in range(2)]

        def end(**_: object) -> None:
            if uploads:
                client, upload = uploads.pop()
                client.abort_multipart_upload(**upload)

        s3.bucket.client.meta.events.register("before-send.s3.ListParts", end)
        s3.push(source, digest)
        assert not uploads and s3.verify(digest) == []


@pytest.mark.parametrize("ceph", [False, True])
def test_an_upload_that_was_begun_with_smaller_parts_is_no_obstacle(
    ceph: bool, source: LocalStore, tmp_path: Path
) -> None:
    digest = commit(source).digest
    with credentials(), running(ceph=ceph, smallest_part=1) as server:
        s3 = at(server.location(tmp_path.name))
        client, upload = begun(s3)
        for number in range(1, 10):
            client.upload_part(**upload, PartNumber=number, Body=b"small")
        s3.push(source, digest)
        assert s3.verify(digest) == []
        assert s3.clear_leftovers(older_than=time.time() + 60) == 1


def test_an_upload_that_is_aborted_under_our_hands_starts_anew(
    server: Server, source: LocalStore, tmp_path: Path
) -> None:
    digest = commit(source).digest
    with in_front_of(server.url, Fault("slow", "PUT", "partNumber", rate=5e5)) as proxy:
        store, beside = (
            at(f"s3://{BUCKET}/{tmp_path.name}?endpoint_url={proxy.url}"),
            at(server.location(tmp_path.name)),
        )
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(store.push, source, digest)
            while not beside.clear_leftovers(older_than=time.time() + 60):
                assert not job.done(), "nothing was aborted: this test showed nothing"
            proxy.faults = []
            job.result()
    assert beside.verify(digest) == []
