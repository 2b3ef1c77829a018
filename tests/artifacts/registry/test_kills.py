"""kill -9 at random moments of promote and gc, on a local store and on S3: all that is left is
whole, and what was begun can be repeated."""

from __future__ import annotations

import functools
import random
import time

import pytest

from artifacts.registry.garbage import collect
from artifacts.registry.refs import Ref, Registry
from artifacts.store.protocol import Store
from tests.support import places
from tests.support.kills import FORK, kill_after, unused
from tests.support.places import Judged, Place, promote, roll_back
from tests.support.rounds import rounds

KILLS = rounds(6, soak=50)


def up(store: Store, one: Judged, why: str) -> Ref:
    return promote(store, "m", one.candidate, "dev", report=one.report, why=why).ref


def refs(place: Place) -> Ref:
    return Registry(place.store.objects).read("m", "dev").ref


def require_clean(place: Place) -> None:
    store = place.store
    assert [
        (digest, problem) for digest in store.digests() for problem in store.verify(digest)
    ] == []


@pytest.mark.soak
@pytest.mark.slow
def test_promote(place: Place) -> None:
    one, two = place.judged("one"), place.judged("two")
    doomed, moments = unused(place.store.location), random.Random(1)

    def work() -> None:
        while True:
            for candidate in (one, two):
                up(doomed, candidate, "doomed")
            roll_back(doomed, "m", "dev", why="doomed")

    started = time.monotonic()
    up(place.store, two, "first")
    longest = 3 * (time.monotonic() - started)  # about two promotions
    grown = 0
    for number in range(KILLS):
        before = len(refs(place).entries)
        # one in each of so many equal parts of the time: not all early, not all late
        moment = longest * (number + moments.random()) / KILLS
        assert kill_after(moment, work)
        ref = refs(place)  # parses: no gap, no fork, nothing half written
        grown += len(ref.entries) > before
        again = two if ref.current and ref.current.digest == one.candidate else one
        assert up(place.store, again, f"after kill {number}").entries[:-1] == ref.entries
    assert 0 < grown < KILLS, (
        "every kill was before, or every one after a write: this test showed nothing"
    )
    require_clean(place)
    assert place.store.objects.keys("refs/") == ["refs/m/dev.json"]


@pytest.mark.soak
@pytest.mark.slow
def test_gc(place: Place) -> None:
    used = place.judged("used")
    doomed, moments = unused(place.store.location), random.Random(2)
    up(place.store, used, "stays")

    stopped = FORK.Event()

    def work(store: Store, stop_at: int = -1) -> None:
        """`stop_at`: the step before which it waits to be killed."""
        steps = iter(range(1000))

        def tell(_fraction: float, _text: str) -> None:
            if next(steps) == stop_at:
                stopped.set()
                time.sleep(600)

        collect(store, keep_history=10, min_age_hours=0, now=time.time() + 60, progress=tell)

    def litter(number: int) -> None:
        place.bring(places.judged(place.workshop, f"{number % 2} litter").report)

    litter(0)
    started = time.monotonic()
    work(place.store)
    longest = 1.2 * (time.monotonic() - started)
    counts = []
    for number in range(KILLS):
        litter(number)
        whole = len(list(place.store.inventory("blobs"))), len(place.store.digests())
        if number % 2:
            kill_after(moments.uniform(0, longest), functools.partial(work, doomed))
        else:  # surely in the middle, however fast it is: before the first or a later blob goes
            stopped.clear()
            assert kill_after(0, functools.partial(work, doomed, moments.randrange(1, 5)), stopped)
        left = len(list(place.store.inventory("blobs"))), len(place.store.digests())
        counts.append(
            "nothing" if left == whole else "some" if left[0] > needed(place, used) else "all"
        )
        assert set(used.all) <= set(place.store.digests())
        require_clean(place)
        assert refs(place).current == refs(place).entries[0]
    assert counts.count("some") >= KILLS // 2 - 1, (
        f"hardly a kill in the middle of it: this test showed nothing ({counts})"
    )
    litter(0)
    work(place.store)
    assert set(place.store.digests()) == set(used.all)
    assert len(list(place.store.inventory("blobs"))) == needed(place, used)
    require_clean(place)


def needed(place: Place, one: Judged) -> int:
    return len(
        {entry.sha256 for digest in one.all for entry in place.workshop.manifest(digest).files}
    )
