"""The small mutable files of an S3 store: one writer wins, a lost answer is no loss, and a server
without conditional writes is found out."""

# covers artifacts/store/objects.py

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from artifacts.store.s3.objects import S3Objects
from artifacts.store.s3.store import S3Store
from configs.errors import ConditionalWritesIgnored, StaleRef
from configs.location import parse_s3
from tests.support.faulty_proxy import Fault, in_front_of
from tests.support.s3_server import SMALL, Server, credentials, running

KEY = "refs/qwen/dev.json"


@pytest.fixture(scope="module", params=[False, True], ids=["as AWS", "as Ceph"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with credentials(), running(ceph=request.param) as server:
        yield server


@pytest.fixture
def objects(server: Server, request: pytest.FixtureRequest) -> S3Objects:
    return at(server.location(re.sub(r"\W", "_", request.node.name)))


def at(location: str) -> S3Objects:
    return S3Store(parse_s3(location), SMALL).objects


def content(objects: S3Objects, key: str = KEY) -> bytes | None:
    found = objects.get(key)
    return found[0] if found else None


def test_what_is_written_is_read_listed_and_removed(objects: S3Objects) -> None:
    assert objects.get(KEY) is None
    objects.swap(KEY, b"one", seen=None)
    objects.swap("refs/qwen/production.json", b"two", seen=None)
    assert content(objects) == b"one"
    assert objects.keys("refs/") == [KEY, "refs/qwen/production.json"]
    assert objects.keys("refs/qwen/p") == ["refs/qwen/production.json"]
    objects.delete(KEY)
    objects.delete(KEY)
    assert objects.keys("refs/") == ["refs/qwen/production.json"]


def test_what_consoles_and_mounts_put_for_folders_is_none(objects: S3Objects) -> None:
    for marker in ("refs/", "refs/qwen/", "serving/"):
        objects.bucket.client.put_object(
            Bucket=objects.bucket.name, Key=objects.bucket.key(marker), Body=b""
        )
    objects.swap(KEY, b"one", seen=None)
    assert objects.keys("refs/") == [KEY] and objects.keys("serving/") == []


def test_the_probe_leaves_nothing(objects: S3Objects) -> None:
    objects.probe()
    assert objects.bucket.below("") == []


def test_a_swap_from_another_version_changes_nothing(objects: S3Objects) -> None:
    objects.swap(KEY, b"one", seen=None)
    first = objects.get(KEY)
    assert first
    objects.swap(KEY, b"two", seen=first[1])
    for seen in (first[1], None):
        with pytest.raises(StaleRef, match=KEY):
            objects.swap(KEY, b"three", seen=seen)
    assert content(objects) == b"two"


def test_a_swap_of_what_is_gone_changes_nothing(objects: S3Objects) -> None:
    objects.swap(KEY, b"one", seen=None)
    seen = (objects.get(KEY) or ("", ""))[1]
    objects.delete(KEY)
    with pytest.raises(StaleRef):
        objects.swap(KEY, b"two", seen=seen)
    assert objects.get(KEY) is None


def test_of_many_who_swap_at_once_one_succeeds(objects: S3Objects) -> None:
    objects.probe()
    for number in range(10):
        now = objects.get(KEY)
        barrier = threading.Barrier(8)

        def swap(
            who: int,
            number: int = number,
            now: tuple[bytes, str] | None = now,
            barrier: threading.Barrier = barrier,
        ) -> bytes | None:
            data = b"%d by %d" % (number, who)
            barrier.wait()
            try:
                objects.swap(KEY, data, seen=now[1] if now else None)
            except StaleRef:
                return None
            return data

        with ThreadPoolExecutor(8) as pool:
            won = [data for data in pool.map(swap, range(8)) if data]
        assert won == [content(objects)]


@pytest.mark.parametrize("kind", ["lose answer", "reset upload", "status"])
def test_a_swap_whose_first_attempt_breaks_is_one_swap(server: Server, kind: str) -> None:
    with in_front_of(server.url) as proxy:
        objects = at(f"s3://models/retried-{kind[:4]}?endpoint_url={proxy.url}")
        objects.swap(KEY, b"one", seen=None)
        proxy.faults = [Fault(kind, "PUT", KEY, times=1)]  # type: ignore[arg-type]
        objects.swap(KEY, b"two", seen=(objects.get(KEY) or ("", ""))[1])
        assert proxy.faults[0].hits == 1
        assert content(objects) == b"two"
        proxy.faults = [Fault(kind, "PUT", "new", times=1)]  # type: ignore[arg-type]
        objects.swap("refs/new.json", b"three", seen=None)
        assert content(objects, "refs/new.json") == b"three"


@pytest.mark.parametrize("ignored", ["If-Match", "If-None-Match"])
def test_a_server_that_ignores_a_condition_is_refused_before_anything_is_written(
    ignored: str,
) -> None:
    with credentials(), running(ignores=[ignored]) as server:
        objects = at(server.location("prefix"))
        with pytest.raises(ConditionalWritesIgnored, match=f"ignores {ignored}.*->") as error:
            objects.swap(KEY, b"one", seen=None)
        assert error.value.where == server.location("prefix")
        assert objects.bucket.below("") == []
