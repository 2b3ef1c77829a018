"""The registry: of those who promote from the same reading exactly one wins, and nothing of the history is lost."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from pydantic import ValidationError

from artifacts.registry import LocalRegistry, Ref
from configs.errors import StaleRef

PROJECT = Path(__file__).parents[2]
RACERS, ROUNDS = 8, 10
VERDICT = "f" * 64


@pytest.fixture
def registry(tmp_path: Path) -> LocalRegistry:
    return LocalRegistry(tmp_path)


def digest(number: int) -> str:
    return f"{number:064x}"


def promote(registry: LocalRegistry, seen: Ref, number: int) -> Ref:
    return registry.set(seen, digest=digest(number), verdict=VERDICT, who="me", why="better")


def test_a_stage_that_nobody_promoted_to_is_empty(registry: LocalRegistry) -> None:
    ref = registry.read("model", "production")
    assert (ref.model, ref.stage, ref.current) == ("model", "production", None)


def test_what_was_set_is_read_with_its_history(registry: LocalRegistry) -> None:
    for number in (1, 2, 1):
        written = promote(registry, registry.read("model", "dev"), number)
        assert registry.read("model", "dev") == written
    entries = registry.read("model", "dev").entries
    assert [entry.digest for entry in entries] == [digest(1), digest(2), digest(1)]
    assert [(entry.verdict, entry.who, entry.why) for entry in entries] == [(VERDICT, "me", "better")] * 3
    assert sorted(entry.when for entry in entries) == [entry.when for entry in entries]


def test_a_stale_set_writes_nothing(registry: LocalRegistry) -> None:
    stale = registry.read("model", "dev")
    promote(registry, stale, 1)
    files = {path: path.read_bytes() for path in registry.root.rglob("*.json")}
    with pytest.raises(StaleRef, match=f"moved to {digest(1)[:12]}"):
        promote(registry, stale, 2)
    assert {path: path.read_bytes() for path in registry.root.rglob("*.json")} == files


def test_setting_back_to_an_earlier_digest_still_makes_older_readings_stale(registry: LocalRegistry) -> None:
    seen = promote(registry, registry.read("model", "dev"), 1)
    promote(registry, promote(registry, seen, 2), 1)
    with pytest.raises(StaleRef):
        promote(registry, seen, 3)


def test_stages_and_models_are_independent(registry: LocalRegistry) -> None:
    dev, production, other = registry.read("a", "dev"), registry.read("a", "production"), registry.read("b", "dev")
    promote(registry, dev, 1)
    promote(registry, production, 2)
    promote(registry, other, 3)
    assert [(ref.model, ref.stage, ref.current and ref.current.digest) for ref in registry.refs()] == [
        ("a", "dev", digest(1)), ("a", "production", digest(2)), ("b", "dev", digest(3))]


def test_a_model_name_cannot_leave_the_registry(registry: LocalRegistry) -> None:
    with pytest.raises(ValidationError):
        registry.read("../other", "dev")


def test_an_entry_that_names_no_artifact_is_not_written(registry: LocalRegistry) -> None:
    with pytest.raises(ValidationError):
        registry.set(registry.read("model", "dev"), digest="latest", verdict=VERDICT, who="me", why="")
    assert registry.refs() == []


def race(root: Path, me: int, start: Barrier, outcomes: multiprocessing.Queue[tuple[int, int, bool]]) -> None:
    registry = LocalRegistry(root)
    for number in range(ROUNDS):
        start.wait()
        seen = registry.read("model", "production")
        start.wait()  # everybody has read before anybody writes
        try:
            promote(registry, seen, 1 + number * RACERS + me)
            outcomes.put((number, me, True))
        except StaleRef:
            outcomes.put((number, me, False))


def test_of_those_who_promote_from_the_same_reading_exactly_one_wins(registry: LocalRegistry) -> None:
    spawn = multiprocessing.get_context("spawn")
    start, outcomes = spawn.Barrier(RACERS, timeout=60), spawn.Queue()
    racers = [spawn.Process(target=race, args=(registry.root.parent, me, start, outcomes)) for me in range(RACERS)]
    for racer in racers:
        racer.start()
    results = [outcomes.get(timeout=60) for _ in range(RACERS * ROUNDS)]
    for racer in racers:
        racer.join(timeout=60)
    assert [racer.exitcode for racer in racers] == [0] * RACERS
    winners = sorted((number, me) for number, me, won in results if won)
    assert [number for number, _ in winners] == list(range(ROUNDS))
    history = [entry.digest for entry in registry.read("model", "production").entries]
    assert history == [digest(1 + number * RACERS + me) for number, me in winners]


WRITER = """
import sys
from pathlib import Path
from artifacts.registry import LocalRegistry
registry = LocalRegistry(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    registry.set(registry.read("model", "dev"), digest="a" * 64, verdict="f" * 64, who="me", why="again")
"""


def test_a_killed_writer_leaves_a_whole_history_and_a_free_lock(registry: LocalRegistry) -> None:
    lengths = [0]
    for delay in (0.01, 0.03, 0.05):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, registry.root.parent], cwd=PROJECT, stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline()
        while len(registry.read("model", "dev").entries) == lengths[-1] and writer.poll() is None:
            time.sleep(0.001)
        time.sleep(delay)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        promote(registry, registry.read("model", "dev"), 1)
        [ref] = registry.refs()
        assert ref.current is not None and ref.current.digest == digest(1)
        lengths.append(len(ref.entries))
    assert lengths == sorted(set(lengths))
