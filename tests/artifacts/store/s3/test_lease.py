"""Who collects garbage on S3: one at a time, for as long as it lives; and who pushes beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import artifacts.store.s3.lease as s3_lease
from artifacts.store.local import LocalStore
from artifacts.store.s3.store import S3Store
from configs.errors import StoreBusy
from tests.support.s3_parts import at, commit


def test_one_collector_at_a_time(s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other = at(s3.location)
    with (
        s3.collecting(),
        pytest.raises(StoreBusy, match="is collecting garbage"),
        other.collecting(),
    ):
        pass
    with other.collecting():
        pass


def test_the_lease_of_a_dead_collector_expires_and_that_of_a_living_one_is_renewed(
    s3: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_lease, "LEASE_SECONDS", 2.0)
    elsewhere = s3_lease.Lease(s3.objects, "")
    elsewhere.owner = f"another-machine/1:{os.getpid()}:1"
    elsewhere.take()  # and it dies
    with pytest.raises(StoreBusy), at(s3.location).collecting():
        pass
    time.sleep(2.1)
    with at(s3.location).collecting():
        time.sleep(3.0)
        with pytest.raises(StoreBusy), s3.collecting():
            pass


def test_the_lease_of_a_collector_that_died_here_ends_at_once(s3: S3Store) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lease = s3_lease.Lease(s3.objects, "")
    lease.owner = lease.owner.replace(f":{os.getpid()}:", f":{gone.pid}:")
    lease.take()
    with at(s3.location).collecting():
        pass


def test_what_a_collection_takes_while_it_is_pushed_is_sent_again(
    s3: S3Store, source: LocalStore
) -> None:
    """The collection has made its plan before the manifest is there, and takes a young blob: an age
    limit does not help."""
    artifact = commit(source)
    s3.push(source, artifact.digest)
    blob = source.manifest(artifact.digest).files[0].sha256
    s3.discard("manifests", artifact.digest, unless_after=time.time() + 60)
    began, pushing = threading.Event(), threading.Event()

    def collect() -> None:
        with at(s3.location).collecting():
            began.set()
            assert pushing.wait(30)
            assert s3.discard("blobs", blob, unless_after=time.time() + 60)

    def tell(_fraction: float, text: str) -> None:
        if "collecting garbage" in text:
            pushing.set()

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(collect)
        assert began.wait(30)
        s3.push(source, artifact.digest, tell)
        job.result()
    assert s3.verify(artifact.digest) == []


def test_of_many_who_want_to_collect_at_once_one_does(s3: S3Store) -> None:
    s3.objects.probe()
    barrier, done = threading.Barrier(4), threading.Event()

    def collect() -> bool:
        barrier.wait()
        try:
            with at(s3.location).collecting():
                done.wait(10)
                return True
        except StoreBusy:
            return False

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(collect) for _ in range(4)]
        while sum(job.done() for job in jobs) < 3:
            time.sleep(0.02)
        done.set()
    assert sum(job.result() for job in jobs) == 1
