"""Garbage collection takes what nothing needs, and in doubt nothing; on a local store and on S3."""

# covers artifacts/registry/serving.py

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from artifacts.registry import garbage, serving
from artifacts.registry.garbage import Collected, Plan, collect, needed_by, plan
from artifacts.registry.refs import Registry
from artifacts.store.local import LocalStore
from artifacts.store.open import open_store
from configs.errors import ArtifactDamaged, ArtifactMissing, ConfigError, StoreBusy, UnsafeManifest
from configs.paths import PROJECT
from tests.support import places
from tests.support.patience import PATIENCE
from tests.support.places import Judged, Place, promote, roll_back

LATER = 3600.0 * 24 * 30  # how much later the collections below take place: everything is old then


@pytest.fixture
def here(tmp_path: Path) -> Place:
    """A local store, where the kind makes no difference."""
    return places.place(None, tmp_path)


def arguments(more: dict[str, Any]) -> dict[str, Any]:
    return {"keep_history": 10, "min_age_hours": 1, "now": time.time() + LATER} | more


def planned(place: Place, **more: Any) -> Plan:
    return plan(place.store, **arguments(more))


def collected(place: Place, **more: Any) -> Collected:
    return collect(place.store, **arguments(more))


def up(place: Place, one: Judged, model: str = "m") -> None:
    promote(place.store, model, one.candidate, "dev", report=one.report)


def left(place: Place) -> set[str]:
    return set(place.store.digests())


def blobs_left(place: Place) -> set[str]:
    return {held.name for held in place.store.inventory("blobs")}


def require_whole(place: Place, *wanted: str) -> None:
    """Just these artifacts are left, each whole, and not a blob more than they have."""
    assert left(place) == set(wanted)
    assert [problem for digest in wanted for problem in place.store.verify(digest)] == []
    assert blobs_left(place) == {
        entry.sha256 for digest in wanted for entry in place.store.manifest(digest).files
    }


# -- what stays, and what goes


def test_what_a_ref_needs_stays_and_the_rest_goes(place: Place) -> None:
    used, unused = place.judged("used"), place.judged("unused")
    up(place, used)
    wanted = planned(place)
    gone = {unused.candidate, unused.report, unused.evidence}
    assert {held.name for held in wanted.manifests} == gone and left(place) == set(used.all) | gone
    assert wanted.kinds == {
        unused.candidate: "w4a16",
        unused.report: "report",
        unused.evidence: "evidence",
    }
    blobs = {entry.sha256 for digest in gone for entry in place.store.manifest(digest).files}
    # config.json is the same
    blobs -= {entry.sha256 for digest in used.all for entry in place.store.manifest(digest).files}
    assert {held.name for held in wanted.blobs} == blobs
    done = collected(place)
    assert (done.manifests, done.blobs, done.freed, done.spared) == (
        3,
        len(blobs),
        wanted.freed,
        [],
    )
    require_whole(place, *used.all)
    assert collected(place) == Collected()


def test_the_order_is_descendants_before_what_they_come_from(place: Place) -> None:
    one = place.judged()
    order = [held.name for held in planned(place).manifests]
    assert sorted(order) == sorted(one.all)
    for digest in order:
        assert all(
            order.index(parent.digest) > order.index(digest)
            for parent in place.store.manifest(digest).parents
        )


def test_a_dry_run_changes_nothing(place: Place) -> None:
    one = place.judged()
    before = (left(place), blobs_left(place))
    planned(place)
    assert (left(place), blobs_left(place)) == before
    require_whole(place, *one.all)


def test_what_is_young_stays_with_all_it_comes_from(here: Place) -> None:
    one, two = here.judged("one"), here.judged("two")
    age(here, {one.report, one.evidence, *two.all, *one.all} - {one.candidate})
    collected(here, now=None)
    require_whole(here, one.candidate, one.parent, one.texts)


def age(place: Place, digests: set[str]) -> None:
    """Make manifests and all blobs that only they have as old as can be."""
    import os

    assert isinstance(place.store, LocalStore)
    kept = {
        entry.sha256
        for digest in left(place) - digests
        for entry in place.store.manifest(digest).files
    }
    for digest in digests:
        os.utime(place.store.manifest_path(digest), (places.OLD, places.OLD))
    for blob in blobs_left(place) - kept:
        os.utime(place.store.blob(blob), (places.OLD, places.OLD))


@pytest.mark.parametrize("hours", [0.5, 24, 24 * 365])
def test_an_upload_that_is_under_way_keeps_its_blobs_as_long_as_the_age_limit_says(
    place: Place, hours: float
) -> None:
    one = place.judged()
    place.remove("manifests", one.report)  # blobs are there, and the manifest has not come yet
    before = blobs_left(place)
    collected(place, min_age_hours=hours, now=time.time() + 3600 * hours - 60)
    assert blobs_left(place) == before
    collected(place, min_age_hours=hours, now=time.time() + 3600 * hours + 60)
    assert blobs_left(place) == set()


def test_the_history_stays_as_deep_as_asked(place: Place) -> None:
    made = [place.judged(str(number)) for number in range(4)]
    for one in made:
        up(place, one)
    for keep in (2, 1, 0):
        collected(place, keep_history=keep)
        require_whole(place, *{digest for one in made[-1 - keep :] for digest in one.all})
    up(place, made[-1], "other")  # a history with things that are gone is no obstacle
    collected(place, keep_history=3)
    require_whole(place, *made[-1].all)


def test_where_a_rollback_would_lead_stays_whatever_was_rolled_back(here: Place) -> None:
    made = [here.judged(str(number)) for number in range(4)]
    for one in made:
        up(here, one)
    for _ in range(2):
        roll_back(here.store, "m", "dev")
    ref = Registry(here.store.objects).read("m", "dev").ref
    assert [served.digest for served in needed_by(ref, 1)] == [
        made[1].candidate,
        made[2].candidate,
        made[0].candidate,
    ]
    assert [served.digest for served in needed_by(ref, 0)] == [made[1].candidate]
    collected(here, keep_history=1)
    assert roll_back(here.store, "m", "dev").now.digest == made[0].candidate
    require_whole(here, *made[0].all, *made[1].all, *made[2].all)


def test_what_an_endpoint_serves_stays_with_what_is_said_of_it(place: Place) -> None:
    served, unused = place.judged("served"), place.judged("unused")
    # of the other one this store has nothing any more
    for name, digest in (("chat", served.candidate), ("other", "0" * 64)):
        serving.announce(place.store, name, digest)
    assert planned(place).kept[served.report] == f"endpoint chat on {serving.this_machine()}"
    collected(place)
    require_whole(place, *served.all)
    assert unused.candidate not in left(place)
    serving.withdraw(place.store, "chat")
    assert collected(place).manifests == len(served.all)


def test_an_endpoint_of_another_machine_counts_until_somebody_says_that_it_is_gone(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = place.judged("served")
    with monkeypatch.context() as there:
        there.setattr(socket, "gethostname", lambda: "-far away.\u00e4")
        there.setenv("LMFLOWS_HOME", str(tmp_path / "far"))
        serving.announce(place.store, "chat", served.candidate)
        there.setattr(socket, "gethostname", lambda: "another-container-with-the-same-volume")
        serving.announce(place.store, "chat", served.candidate)
    [far] = serving.everywhere(place.store)
    assert far.name.startswith("faraway.-") and far.machine != serving.this_machine()
    serving.withdraw(place.store, "chat")  # ours: there is none
    assert collected(place).manifests == 0
    with pytest.raises(ConfigError, match=f"it is one of {far.name}"):
        collected(place, forget=["far-away/chat"])
    assert len(planned(place, forget=[far.name]).manifests) == len(served.all)
    assert serving.everywhere(place.store) == [far]  # a plan changes nothing
    assert collected(place, forget=[far.name]).manifests == len(served.all)
    assert serving.everywhere(place.store) == []


def test_an_endpoint_that_begins_while_a_collection_is_under_way_is_spared(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = place.judged()
    plan_ = garbage._Collection.plan

    def planned_and_then_announced(self: Any) -> Plan:
        found = plan_(self)
        serving.announce(place.store, "chat", one.candidate)
        return found

    monkeypatch.setattr(garbage._Collection, "plan", planned_and_then_announced)
    assert set(collected(place).spared) == set(one.all)
    require_whole(place, *one.all)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"another"])
def test_an_announcement_that_cannot_be_read_lets_nothing_go(here: Place, content: bytes) -> None:
    one = here.judged()
    serving.announce(here.store, "chat", one.candidate)
    [key] = here.store.objects.keys("serving/")
    if content == b"another":
        content = here.bytes_of(key).replace(b'"chat"', b'"tahc"')  # type: ignore[union-attr]
    here.store.objects.put(key, content)
    with pytest.raises(ArtifactDamaged, match=f"{key}.*->"):
        collected(here)
    require_whole(here, *one.all)


def test_signatures_of_what_is_gone_go_and_others_stay(place: Place) -> None:
    used, unused = place.judged("used"), place.judged("unused")
    up(place, used)
    keys = [f"signatures/{one.candidate}/{'a' * 64}.json" for one in (used, unused)] + [
        f"signatures/{'e' * 64}/{'a' * 64}.json"
    ]
    for key in [*keys, "signatures/notes/mine.json"]:
        place.store.objects.swap(key, b"{}", seen=None)
    assert sorted(planned(place).signatures) == sorted(keys[1:])
    assert collected(place).signatures == 2
    assert place.store.objects.keys("signatures/") == sorted(
        [keys[0], "signatures/notes/mine.json"]
    )


@pytest.mark.parametrize(
    "numbers",
    [
        {"min_age_hours": float("nan")},
        {"min_age_hours": -1},
        {"min_age_hours": float("inf")},
        {"keep_history": -1},
    ],
)
def test_numbers_that_would_make_everything_old_are_refused(
    here: Place, numbers: dict[str, Any]
) -> None:
    one = here.judged()
    with pytest.raises(ConfigError):
        collected(here, **numbers)
    require_whole(here, *one.all)


# -- in doubt nothing goes


def nothing_goes(
    place: Place,
    match: str,
    error: type[Exception] | tuple[type[Exception], ...] = ArtifactDamaged,
    **more: Any,
) -> None:
    before = left(place), blobs_left(place)
    for attempt in (planned, collected):
        with pytest.raises(error, match=match):
            attempt(place, **more)
    assert (left(place), blobs_left(place)) == before


@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_a_manifest_that_a_ref_needs_and_that_cannot_be_read_stops_it(
    place: Place, how: str
) -> None:
    one, unused = place.judged("one"), place.judged("unused")
    up(place, one)
    for part in ("candidate", "report", "evidence", "parent", "texts"):
        damaged: str = getattr(one, part)
        (place.spoil if how == "flipped" else place.remove)("manifests", damaged)
        nothing_goes(place, "nothing is collected", (ArtifactDamaged, ArtifactMissing))
        place.spoil("manifests", damaged) if how == "flipped" else place.judged("one")
    assert collected(place).manifests == 3 and unused.candidate not in left(place)


def test_a_young_manifest_that_cannot_be_read_stops_it_and_an_old_one_is_garbage(
    here: Place,
) -> None:
    one = here.judged()
    here.spoil("manifests", one.report)
    nothing_goes(here, "nothing is collected", (ArtifactDamaged, UnsafeManifest), now=None)
    assert planned(here).kinds[one.report] == "damaged"
    collected(here)
    require_whole(here)


def test_a_young_artifact_whose_parents_are_elsewhere_is_no_obstacle(here: Place) -> None:
    one = here.judged()
    here.remove("manifests", one.texts)
    collected(here, now=None)
    assert left(here) == set(one.all) - {one.texts}


@pytest.mark.parametrize("content", [b"", b"{}", b'{"model":"m","stage":"dev"', b"\xff\xfe"])
def test_a_ref_that_cannot_be_read_stops_it(place: Place, content: bytes) -> None:
    place.judged()
    place.store.objects.swap("refs/m/dev.json", content, seen=None)
    nothing_goes(place, "ref m/dev")


@pytest.mark.parametrize(
    "key", ["refs/m/live.json", "refs/m.json", "refs/m/x/dev.json", "refs/-/dev.json"]
)
def test_a_file_among_the_refs_that_cannot_be_one_stops_it(here: Place, key: str) -> None:
    here.judged()
    here.store.objects.swap(key, b"{}", seen=None)
    nothing_goes(here, "ref")


def test_a_ref_with_a_changed_history_stops_it(place: Place) -> None:
    one, two = place.judged("one"), place.judged("two")
    up(place, one)
    up(place, two)
    found = place.store.objects.get("refs/m/dev.json")
    assert found is not None
    place.store.objects.swap(
        "refs/m/dev.json",
        found[0].replace(one.candidate.encode(), two.candidate.encode()),
        seen=found[1],
    )
    nothing_goes(place, "history was changed")


# -- beside others


def test_what_is_promoted_while_it_collects_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The promotion comes after the plan was made, before the first manifest goes."""
    one, unused = place.judged("one"), place.judged("unused")

    def meanwhile(_fraction: float, text: str) -> None:
        if text == "manifests":
            up(place, one)

    done = collect(
        place.store, keep_history=10, min_age_hours=1, now=time.time() + LATER, progress=meanwhile
    )
    assert set(done.spared) == set(one.all) and unused.candidate not in left(place)
    require_whole(place, *one.all)


def test_what_is_touched_while_it_collects_stays_with_what_it_comes_from(here: Place) -> None:
    """A promotion has touched it, and has not written the ref yet."""
    one = here.judged()
    age(here, set(one.all))

    def meanwhile(_fraction: float, text: str) -> None:
        if text == "manifests":
            here.store.touch(one.candidate)

    done = collect(here.store, keep_history=10, min_age_hours=1, progress=meanwhile)
    assert set(done.spared) == {one.candidate, one.parent, one.texts}
    require_whole(here, one.candidate, one.parent, one.texts)


def test_what_is_pushed_again_between_manifests_and_blobs_is_whole_in_the_end(place: Place) -> None:
    """On S3, where nobody waits to write: who pushes waits in the end, and looks again."""
    if place.server is None:
        pytest.skip("a local store lets nobody write meanwhile")
    one, waits = place.judged(), threading.Event()

    def push() -> None:
        for digest in one.all:
            place.store.push(
                place.workshop,
                digest,
                lambda _fraction, text: waits.set() if "collecting garbage" in text else None,
            )

    with ThreadPoolExecutor(1) as pool:
        jobs: list[Future[None]] = []

        def meanwhile(_fraction: float, text: str) -> None:
            if text == "blobs" and not jobs:
                jobs.append(pool.submit(push))
                assert waits.wait(PATIENCE)

        done = collect(
            place.store,
            keep_history=10,
            min_age_hours=0,
            now=time.time() + LATER,
            progress=meanwhile,
        )
        jobs[0].result()
    assert done.manifests == 5 and done.blobs > 0
    require_whole(place, *one.all)


@pytest.mark.parametrize("folder", ["refs/m", "serving/machine", "manifests/sha256"])
def test_a_folder_that_cannot_be_read_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """What it holds would count as needed by nobody. Root may read everything, so the system's
    answer is planted."""
    store = LocalStore(tmp_path / "store")
    one = places.judged(store)
    promote(store, "m", one.candidate, "dev")
    (store.root / folder).mkdir(parents=True, exist_ok=True)
    scandir = os.scandir

    def refuses(path: Any = ".") -> Any:
        if Path(path) == store.root / folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(PermissionError):
        collect(store, keep_history=1, min_age_hours=0)
    monkeypatch.undo()
    assert store.verify(one.candidate) == []


def test_only_one_collects(place: Place) -> None:
    one = place.judged()
    if place.server is None:
        pytest.skip(
            "the second waits for ten minutes, then gives up: tests/artifacts/store/test_locks.py"
        )
    with place.store.collecting(), pytest.raises(StoreBusy):
        collected(place)
    require_whole(place, *one.all)


PUSHER = """
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
import artifacts.store.s3.lease
from artifacts.store.local import LocalStore
from artifacts.store.ancestors import lineage
from artifacts.store.open import open_store
from tests.support.places import judged
artifacts.store.s3.lease.POLL_SECONDS = 0.05
store, workshop = open_store(sys.argv[1]), LocalStore(Path(sys.argv[2]))
print("ready", flush=True)
for number in range(int(sys.argv[3])):
    # the same again and again: what was collected is pushed anew
    one = judged(workshop, f"{number % 4}")
    for digest in lineage(workshop, [one.report]):
        store.push(workshop, digest)
"""


@pytest.mark.slow
def test_an_upload_beside_a_collection_is_whole_in_the_end(place: Place, tmp_path: Path) -> None:
    """With an age limit of no time at all."""
    command = [
        sys.executable,
        "-c",
        PUSHER,
        place.store.location,
        str(tmp_path / "elsewhere"),
        "50" if place.server is None else "4",
    ]
    process = subprocess.Popen(command, cwd=PROJECT, text=True, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline()
        collector, removed = open_store(place.store.location), 0
        while process.poll() is None:
            done = collect(collector, keep_history=10, min_age_hours=0, now=time.time() + LATER)
            removed += done.manifests + done.blobs
            time.sleep(0.3)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    assert process.returncode == 0 and removed, "nothing was collected: this test showed nothing"
    assert [problem for digest in left(place) for problem in place.store.verify(digest)] == []
