"""kill -9 in the middle of pushes and pulls: afterwards what is there is whole, and the operation
can be repeated."""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path

import pytest

from artifacts.manifest import ModelArtifact
from artifacts.store.local import LocalStore
from artifacts.store.protocol import Store
from artifacts.store.s3.store import S3Store
from configs.location import parse_s3
from tests.support.kills import FORK, kill_after, unused
from tests.support.patience import PATIENCE
from tests.support.rounds import rounds
from tests.support.s3_parts import commit
from tests.support.s3_server import SMALL, Server

KILLS = rounds(6, soak=50)  # of each, push and pull
DICE = random.Random(0)
CONTENT = {
    "config.json": b"{}",
    "weights/large": DICE.randbytes(12 * SMALL.part_bytes + 5),
    **{f"weights/{number}": DICE.randbytes(60_000 + number) for number in range(8)},
}

BEGUN = FORK.Event()


def work(what: str, folder: Path, store: Store, digest: str) -> None:
    """It says when it begins, so that the moments fall into the transfer and not into the first
    connection."""
    local = LocalStore(folder)
    store.has(digest)
    BEGUN.set()
    if what == "push":
        store.push(local, digest)
    else:
        store.pull(digest, local)


def killed(seconds: float, what: str, folder: Path, store: Store, digest: str) -> bool:
    """Whether it was killed so long after it began, before it was done."""
    BEGUN.clear()
    return kill_after(seconds, partial(work, what, folder, store, digest), BEGUN)


def duration_of(what: str, folder: Path, store: Store, digest: str) -> float:
    """Seconds of the whole operation, undisturbed."""
    BEGUN.clear()
    process = FORK.Process(target=work, args=(what, folder, store, digest))
    process.start()
    assert BEGUN.wait(PATIENCE)
    started = time.monotonic()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - started


@pytest.fixture
def artifact(source: LocalStore) -> ModelArtifact:
    return commit(source, CONTENT)


@pytest.mark.soak
@pytest.mark.slow
def test_a_push_that_is_killed_shows_nothing_and_can_be_repeated(
    server: Server, source: LocalStore, artifact: ModelArtifact
) -> None:
    moments, place = random.Random(1), 0
    duration = duration_of(
        "push", source.root, unused(server.location("measured"), SMALL), artifact.digest
    )
    interrupted = finished = 0
    doomed, store = (unused(server.location("kill-0"), SMALL) for _ in range(2))
    while interrupted < KILLS:
        if killed(moments.uniform(0, duration), "push", source.root, doomed, artifact.digest):
            interrupted += 1
        else:
            # it was faster than the one that was measured, or went on where another was killed: it
            # is no kill
            finished, duration = finished + 1, 0.9 * duration
            assert finished < 2 * KILLS
        for digest in store.digests():
            assert store.verify(digest) == []
        if store.digests() or interrupted % 3 == 0 or interrupted == KILLS:
            store.push(source, artifact.digest)
            assert store.digests() == [artifact.digest]
            assert store.verify(artifact.digest) == []
            place += 1  # else the next one goes on where this one was killed
            doomed, store = (unused(server.location(f"kill-{place}"), SMALL) for _ in range(2))
    assert source.verify(artifact.digest) == []


@pytest.mark.soak
@pytest.mark.slow
def test_a_pull_that_is_killed_shows_nothing_and_can_be_repeated(
    server: Server, source: LocalStore, artifact: ModelArtifact, tmp_path: Path
) -> None:
    moments, place = random.Random(2), 0
    store = S3Store(parse_s3(server.location("pulled")), SMALL)
    store.push(source, artifact.digest)
    doomed = unused(store.location, SMALL)
    duration = duration_of("pull", tmp_path / "measured", doomed, artifact.digest)
    interrupted = finished = 0
    while interrupted < KILLS:
        target = LocalStore(tmp_path / f"kill-{place}")
        if killed(moments.uniform(0, duration), "pull", target.root, doomed, artifact.digest):
            interrupted += 1
        else:
            finished, duration = finished + 1, 0.9 * duration
            assert finished < 2 * KILLS
        for digest in target.digests():
            assert target.verify(digest) == []
        if target.digests() or interrupted % 3 == 0 or interrupted == KILLS:
            store.pull(artifact.digest, target)
            assert target.verify(artifact.digest) == []
            assert list((target.root / "tmp").iterdir()) == []
            place += 1
