"""The local store: what is committed can be opened and verified, damage is found and healed, and a
kill leaves nothing broken."""

# covers artifacts/store/damage.py
# covers artifacts/store/staging.py

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts.manifest import Parent
from artifacts.store.local import LocalStore
from artifacts.store.protocol import Problem
from configs.errors import ArtifactDamaged, ArtifactMissing, DiskFull
from configs.paths import PROJECT
from tests.support.local_parts import CONTENT, blob_of, commit, flip_a_byte, replace, tmp_of
from tests.support.patience import PATIENCE
from tests.support.rounds import rounds

# -- committing and reading


def test_what_is_committed_is_opened_and_verified(store: LocalStore) -> None:
    artifact = store.open(commit(store).digest)
    assert {
        path.relative_to(artifact.path).as_posix(): path.read_bytes()
        for path in artifact.path.rglob("*.*")
    } == CONTENT
    assert store.verify(artifact.digest) == []
    assert store.digests() == [artifact.digest]
    assert tmp_of(store) == []


def test_equal_content_is_kept_once(store: LocalStore) -> None:
    one = commit(store)
    two = commit(store, CONTENT | {"copy.json": b"{}", "new": b"new"})
    assert len(list((store.root / "blobs" / "sha256").iterdir())) == len(CONTENT) + 1
    assert (one.path / "config.json").samefile(two.path / "copy.json")


def test_committing_the_same_again_is_the_same_artifact(store: LocalStore) -> None:
    assert commit(store) == commit(store)
    assert len(store.digests()) == 1


def test_parents_and_recipe_are_part_of_the_artifact(store: LocalStore) -> None:
    base = commit(store)
    with store.staging() as staging:
        staging.write("config.json", b"{}")
        child = store.commit(
            staging, "w4a16", parents=[Parent(role="model", digest=base.digest)], recipe={"seed": 1}
        )
    manifest = store.manifest(child.digest)
    assert (manifest.kind, manifest.parent("model"), manifest.recipe) == (
        "w4a16",
        base.digest,
        {"seed": 1},
    )


def test_a_full_disk_leaves_no_artifact(tmpfs: Callable[[str], Path]) -> None:
    store = LocalStore(tmpfs("size=1m") / "store")
    with pytest.raises(DiskFull):
        commit(store, {"weights": b"x" * (2 << 20)})
    assert store.digests() == []
    assert tmp_of(store) == []


# -- damage


def test_a_flipped_byte_is_found(store: LocalStore) -> None:
    artifact = commit(store)
    flip_a_byte(artifact.path / "weights" / "a.safetensors")
    assert store.verify(artifact.digest) == [Problem("changed", "weights/a.safetensors")]


def test_a_missing_file_is_found(store: LocalStore) -> None:
    artifact = commit(store)
    (artifact.path / "config.json").unlink()
    assert store.verify(artifact.digest) == [Problem("missing", "config.json")]


def test_an_extra_file_is_found(store: LocalStore) -> None:
    artifact = commit(store)
    (artifact.path / "weights" / "modeling.py").write_bytes(b"import os")
    assert store.verify(artifact.digest) == [Problem("extra", "weights/modeling.py")]


def test_an_extra_folder_behind_a_link_is_found(store: LocalStore, tmp_path: Path) -> None:
    artifact = commit(store)
    (artifact.path / "code").symlink_to(tmp_path)
    assert store.verify(artifact.digest) == [Problem("extra", "code")]


def test_a_replaced_file_is_found_though_its_blob_is_whole(store: LocalStore) -> None:
    artifact = commit(store)
    replace(artifact.path / "config.json", b"[]")
    assert store.verify(artifact.digest) == [Problem("changed", "config.json")]


def test_a_damaged_blob_is_found_though_the_tree_is_whole(store: LocalStore) -> None:
    artifact = commit(store)
    replace(blob_of(store, "config.json"), b"[]")
    assert store.verify(artifact.digest) == [Problem("changed", "config.json")]


def test_a_missing_blob_is_found_though_the_tree_is_whole(store: LocalStore) -> None:
    artifact = commit(store)
    blob_of(store, "config.json").unlink()
    assert store.verify(artifact.digest) == [Problem("missing", "config.json")]


def test_every_problem_is_named(store: LocalStore) -> None:
    artifact = commit(store)
    flip_a_byte(artifact.path / "weights" / "a.safetensors")
    (artifact.path / "weights" / "b.safetensors").unlink()
    (artifact.path / "new").write_bytes(b"")
    with pytest.raises(
        ArtifactDamaged,
        match=r"extra: new; changed: weights/a\.safetensors; missing: weights/b\.safetensors",
    ):
        store.require_whole(artifact.digest)


@pytest.mark.parametrize("place", ["tree", "blob", "both"])
def test_committing_the_same_content_heals(store: LocalStore, place: str) -> None:
    artifact = commit(store)
    if place == "both":  # one file under two names
        flip_a_byte(artifact.path / "weights" / "a.safetensors")
    else:
        replace(
            (
                artifact.path / "weights/a.safetensors"
                if place == "tree"
                else blob_of(store, "weights/a.safetensors")
            ),
            b"other",
        )
    assert store.verify(artifact.digest) == [Problem("changed", "weights/a.safetensors")]
    assert commit(store).digest == artifact.digest
    assert store.verify(artifact.digest) == []
    assert blob_of(store, "weights/a.safetensors").read_bytes() == CONTENT["weights/a.safetensors"]
    assert (artifact.path / "weights" / "a.safetensors").read_bytes() == CONTENT[
        "weights/a.safetensors"
    ]


def test_a_healed_blob_does_not_hide_the_damage_in_another_tree(store: LocalStore) -> None:
    one, two = commit(store), commit(store, CONTENT | {"new": b"new"})
    flip_a_byte(one.path / "config.json")
    commit(store)
    assert store.verify(one.digest) == []
    assert store.verify(two.digest) == [Problem("changed", "config.json")]


def test_a_manifest_that_was_tampered_with_is_found(store: LocalStore) -> None:
    artifact = commit(store)
    path = store.manifest_path(artifact.digest)
    replace(path, path.read_bytes().replace(b'"fp16"', b'"w4a16"'))
    with pytest.raises(ArtifactDamaged, match="does not hash to its name"):
        store.open(artifact.digest)


def test_an_unknown_digest_is_missing(store: LocalStore) -> None:
    with pytest.raises(ArtifactMissing):
        store.open("0" * 64)


# -- pushing


def test_a_push_is_verified_and_linked(store: LocalStore, tmp_path: Path) -> None:
    artifact, target = commit(store), LocalStore(tmp_path / "target")
    assert target.push(store, artifact.digest) == store.manifest(artifact.digest).size
    assert target.manifest(artifact.digest) == store.manifest(artifact.digest)
    assert target.verify(artifact.digest) == []
    for name in CONTENT:
        assert (target.open(artifact.digest).path / name).stat().st_ino == (
            artifact.path / name
        ).stat().st_ino
    assert tmp_of(target) == []


def test_a_push_across_devices_is_a_copy_of_its_own(store: LocalStore, elsewhere: Path) -> None:
    artifact, target = commit(store), LocalStore(elsewhere / "target")
    target.push(store, artifact.digest)
    shutil.rmtree(store.root)
    assert target.verify(artifact.digest) == []
    assert not any(path.is_symlink() for path in target.root.rglob("*"))


def test_a_blob_that_is_there_is_not_sent_again(store: LocalStore, elsewhere: Path) -> None:
    target = LocalStore(elsewhere / "target")
    target.push(store, commit(store).digest)
    before = {name: blob_of(target, name).stat().st_ino for name in CONTENT}
    target.push(store, commit(store, CONTENT | {"new": b"new"}).digest)
    assert {name: blob_of(target, name).stat().st_ino for name in CONTENT} == before


def test_a_push_heals_a_blob_that_is_damaged_at_the_target(
    store: LocalStore, elsewhere: Path
) -> None:
    artifact, target = commit(store), LocalStore(elsewhere / "target")
    target.push(store, artifact.digest)
    flip_a_byte(blob_of(target, "config.json"))
    target.push(store, artifact.digest)
    assert target.verify(artifact.digest) == []


@pytest.mark.parametrize("damage", ["changed", "missing"])
@pytest.mark.parametrize("device", ["tmp_path", "elsewhere"])
def test_a_damaged_artifact_is_not_pushed(
    store: LocalStore, damage: str, device: str, request: pytest.FixtureRequest
) -> None:
    artifact, target = commit(store), LocalStore(request.getfixturevalue(device) / "target")
    blob = blob_of(store, "weights/b.safetensors")
    blob.unlink() if damage == "missing" else flip_a_byte(blob)
    with pytest.raises(ArtifactDamaged, match=rf"{damage}: weights/b\.safetensors"):
        target.push(store, artifact.digest)
    assert target.digests() == []
    assert not target.tree(artifact.digest).exists()
    assert tmp_of(target) == []


# -- processes that die, and that meet

KILLS = rounds(8, soak=100)
WRITER = """
import random, sys
from pathlib import Path
from artifacts.store.local import LocalStore
store, source = LocalStore(Path(sys.argv[1])), random.Random(int(sys.argv[2]))
print("ready", flush=True)
while True:
    with store.staging() as staging:
        for name in ("config.json", "weights/a", "weights/b", "weights/c"):
            staging.write(name, source.randbytes(source.randrange(100_000, 400_000)))
        store.commit(staging, "fp16")
        store.commit(staging, "w4a16")
"""


@pytest.mark.soak
def test_a_kill_at_any_moment_leaves_only_whole_artifacts(store: LocalStore) -> None:
    moments, left_behind = random.Random(0), 0
    for number in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, store.root, str(number)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None and writer.stdout.readline()
        # one in each of so many equal parts of the time: not all early, not all late
        time.sleep(0.3 * (number + moments.random()) / KILLS)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        left_behind += len(tmp_of(store)) if (store.root / "tmp").exists() else 0
    assert left_behind, "no process was killed while it wrote: this test showed nothing"
    assert store.digests(), "no process was killed after it wrote: this test showed nothing"
    for digest in store.digests():
        assert store.verify(digest) == []
        assert store.open(digest).path.is_dir()
    store.sweep()
    assert tmp_of(store) == []


SAME = """
import sys
from pathlib import Path
from artifacts.store.local import LocalStore
store = LocalStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(60):
    with store.staging() as staging:
        staging.write("config.json", b"{}")
        staging.write("weights", b"w" * 1000)
        store.commit(staging, "fp16")
"""


def test_processes_that_commit_the_same_at_once_all_succeed(store: LocalStore) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", SAME, store.root],
            cwd=PROJECT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline()
    answers = []
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        answers.append((writer.communicate(timeout=PATIENCE)[1], writer.returncode))
    assert answers == [("", 0)] * 4
    [digest] = store.digests()
    assert store.verify(digest) == []
    assert tmp_of(store) == []
