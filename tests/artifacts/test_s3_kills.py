"""kill -9 in the middle of pushes and pulls: afterwards what is there is whole, and the operation can be repeated."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artifacts.manifest import ModelArtifact
from artifacts.s3 import S3Store
from artifacts.store import LocalStore
from configs.location import parse_s3
from tests.artifacts.s3_parts import commit
from tests.s3_server import SMALL, Server

PROJECT = Path(__file__).parents[2]
KILLS = 25  # of each, push and pull
DICE = random.Random(0)
CONTENT = {"config.json": b"{}", "weights/large": DICE.randbytes(24 * SMALL.part_bytes + 5),
           **{f"weights/{number}": DICE.randbytes(60_000 + number) for number in range(12)}}

# A warm process for each kill: it says when it begins, so that the moments fall into the transfer and not into imports.
CHILD = """
import sys
from pathlib import Path
from artifacts.s3 import S3Store
from artifacts.store import LocalStore
from configs.location import parse_s3
from tests.s3_server import SMALL
what, folder, location, digest = sys.argv[1:]
store, local = S3Store(parse_s3(location), SMALL), LocalStore(Path(folder))
store.has(digest)
print("ready", flush=True)
sys.stdin.readline()
store.push(local, digest) if what == "push" else store.pull(digest, local)
print("done", flush=True)
"""


class Child:
    def __init__(self, what: str, folder: Path, location: str, digest: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", CHILD, what, folder, location, digest], cwd=PROJECT, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout and self.process.stdout.readline() == "ready\n"

    def begin(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def seconds(self) -> float:
        """Of the whole operation, undisturbed."""
        started = time.monotonic()
        self.begin()
        assert self.process.stdout and self.process.stdout.readline() == "done\n"
        seconds = time.monotonic() - started
        self.process.wait()
        return seconds

    def killed_after(self, seconds: float) -> bool:
        """Whether it was killed before it was done."""
        self.begin()
        time.sleep(seconds)
        self.process.kill()
        output, _ = self.process.communicate()
        return "done" not in output


@pytest.fixture
def artifact(source: LocalStore) -> ModelArtifact:
    return commit(source, CONTENT)


@pytest.mark.slow
def test_a_push_that_is_killed_shows_nothing_and_can_be_repeated(server: Server, source: LocalStore, artifact: ModelArtifact) -> None:
    moments, place = random.Random(1), 0
    duration = Child("push", source.root, server.location("measured"), artifact.digest).seconds()
    interrupted = finished = 0
    while interrupted < KILLS:
        location = server.location(f"kill-{place}")
        if Child("push", source.root, location, artifact.digest).killed_after(moments.uniform(0, duration)):
            interrupted += 1
        else:  # it was faster than the one that was measured, or went on where another was killed: it is no kill
            finished, duration = finished + 1, 0.9 * duration
            assert finished < 2 * KILLS
        store = S3Store(parse_s3(location), SMALL)
        for digest in store.digests():
            assert store.verify(digest) == []
        if store.digests() or interrupted % 3 == 0 or interrupted == KILLS:
            store.push(source, artifact.digest)
            assert store.digests() == [artifact.digest]
            assert store.verify(artifact.digest) == []
            place += 1  # else the next one goes on where this one was killed
    assert source.verify(artifact.digest) == []


@pytest.mark.slow
def test_a_pull_that_is_killed_shows_nothing_and_can_be_repeated(server: Server, source: LocalStore, artifact: ModelArtifact, tmp_path: Path) -> None:
    moments, place = random.Random(2), 0
    store = S3Store(parse_s3(server.location("pulled")), SMALL)
    store.push(source, artifact.digest)
    duration = Child("pull", tmp_path / "measured", store.location, artifact.digest).seconds()
    interrupted = finished = 0
    while interrupted < KILLS:
        target = LocalStore(tmp_path / f"kill-{place}")
        if Child("pull", target.root, store.location, artifact.digest).killed_after(moments.uniform(0, duration)):
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
