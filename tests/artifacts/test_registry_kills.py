"""kill -9 at random moments of promote and gc, on a local store and on S3: all that is left is whole, and what was begun can be repeated."""

from __future__ import annotations

import functools
import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event

import pytest

from artifacts.garbage import collect
from artifacts.promotion import promote, rollback
from artifacts.registry import Ref, Registry
from artifacts.stores import open_store
from tests.artifacts import places
from tests.artifacts.places import OPEN, Judged, Place

KILLS = {"local": 50, "s3": 12}  # with a server each takes two seconds; 50 have been tried there, too


FORK = multiprocessing.get_context("fork")  # an import of everything fifty times would take minutes


def kill_after(seconds: float, work: Callable[[], None], since: Event | None = None) -> bool:
    """Do the work in a process of its own, and kill that so long after its start, or after `since`; whether it was still at work."""
    ready = since or FORK.Event()

    def begin() -> None:
        if since is None:
            ready.set()
        work()

    process = FORK.Process(target=begin)
    process.start()
    assert ready.wait(60)
    time.sleep(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9), "it failed before it was killed"
    return process.exitcode == -9


def up(location: str, one: Judged, why: str) -> Ref:
    """Through a client of its own: no connection outlives a fork."""
    return promote(open_store(location), "m", one.candidate, "dev", report=one.report, who="me", why=why, policy=OPEN).ref


def kills(place: Place) -> int:
    return KILLS["local" if place.server is None else "s3"]


def refs(place: Place) -> Ref:
    return Registry(open_store(place.store.location).objects).read("m", "dev").ref


def require_clean(place: Place) -> None:
    store = open_store(place.store.location)
    assert [(digest, problem) for digest in store.digests() for problem in store.verify(digest)] == []


@pytest.mark.slow
def test_promote(place: Place) -> None:
    one, two = place.judged("one"), place.judged("two")
    location, moments = place.store.location, random.Random(1)

    def work() -> None:
        while True:
            for candidate in (one, two):
                up(location, candidate, "doomed")
            rollback(open_store(location), "m", "dev", who="me", why="doomed", policy=OPEN)

    started = time.monotonic()
    up(location, two, "first")
    longest = 3 * (time.monotonic() - started)  # about two promotions
    grown = 0
    for number in range(kills(place)):
        before = len(refs(place).entries)
        assert kill_after(moments.uniform(0, longest), work)
        ref = refs(place)  # parses: no gap, no fork, nothing half written
        grown += len(ref.entries) > before
        again = two if ref.current and ref.current.digest == one.candidate else one
        assert up(location, again, f"after kill {number}").entries[:-1] == ref.entries
    assert 0 < grown < kills(place), "every kill was before, or every one after a write: this test showed nothing"
    require_clean(place)
    assert place.store.objects.keys("refs/") == ["refs/m/dev.json"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gc(place: Place) -> None:
    used = place.judged("used")
    location, moments = place.store.location, random.Random(2)
    up(location, used, "stays")

    stopped = FORK.Event()

    def work(stop_at: int = -1) -> None:
        """`stop_at`: the step before which it waits to be killed."""
        steps = iter(range(1000))

        def tell(_fraction: float, _text: str) -> None:
            if next(steps) == stop_at:
                stopped.set()
                time.sleep(600)

        collect(open_store(location), keep_history=10, min_age_hours=0, now=time.time() + 60, progress=tell)

    def litter(number: int) -> None:
        place.bring(places.judged(place.workshop, f"{number % 2} litter").report)

    litter(0)
    started = time.monotonic()
    work()
    longest = 1.2 * (time.monotonic() - started)
    counts = []
    for number in range(kills(place)):
        litter(number)
        whole = len(list(open_store(location).inventory("blobs"))), len(open_store(location).digests())
        if number % 2:
            kill_after(moments.uniform(0, longest), work)
        else:  # surely in the middle, however fast it is: before the first or a later blob goes
            stopped.clear()
            assert kill_after(0, functools.partial(work, moments.randrange(1, 5)), stopped)
        left = len(list(open_store(location).inventory("blobs"))), len(open_store(location).digests())
        counts.append("nothing" if left == whole else "some" if left[0] > needed(place, used) else "all")
        assert set(used.all) <= set(open_store(location).digests())
        require_clean(place)
        assert refs(place).current == refs(place).entries[0]
    assert counts.count("some") >= kills(place) // 2 - 1, f"hardly a kill in the middle of it: this test showed nothing ({counts})"
    litter(0)
    work()
    assert set(open_store(location).digests()) == set(used.all)
    assert len(list(open_store(location).inventory("blobs"))) == needed(place, used)
    require_clean(place)


def needed(place: Place, one: Judged) -> int:
    return len({entry.sha256 for digest in one.all for entry in place.workshop.manifest(digest).files})
