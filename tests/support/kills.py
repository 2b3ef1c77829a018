"""Work in a process of its own that is killed in the middle."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event

from artifacts.store.open import open_store
from artifacts.store.protocol import Store
from artifacts.store.s3.connection import Tuning
from artifacts.store.s3.store import S3Store
from configs.location import S3, parse_s3
from tests.support.patience import PATIENCE

# an import of everything for each of fifty kills would take minutes
FORK = multiprocessing.get_context("fork")


def unused(location: str, tuning: Tuning | None = None) -> Store:
    """A store that only forks use: its client is made, which takes a while, and has no connection
    yet."""
    if not location.startswith(S3):
        return open_store(location)
    store = S3Store(parse_s3(location), tuning)
    assert store.bucket.client is not None
    return store


def kill_after(seconds: float, work: Callable[[], None], since: Event | None = None) -> bool:
    """Do the work in a process of its own, and kill that so long after its start, or after it has
    set `since`; whether it was still at work.

    No connection outlives a fork: `work` opens its own stores, or has `unused` ones.
    """
    ready = since or FORK.Event()

    def begin() -> None:
        if since is None:
            ready.set()
        work()

    process = FORK.Process(target=begin)
    process.start()
    assert ready.wait(PATIENCE)
    time.sleep(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9), "it failed before it was killed"
    return process.exitcode == -9
