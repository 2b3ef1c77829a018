"""A store from elsewhere: what lies in it may be a link to anything. Nothing of this machine gets
in, and nothing points out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts.manifest import MAX_BYTES, Manifest
from artifacts.store.local import LocalStore
from configs.errors import ArtifactDamaged, LmflowsError

CONTENT = b"what the manifest says\n"
SHA = hashlib.sha256(CONTENT).hexdigest()


class Outside:
    """A store whose maker has placed every file by hand, and a file of the user's own with known
    content."""

    def __init__(self, folder: Path) -> None:
        self.store, self.own = LocalStore(folder / "outside"), folder / "home" / "own.txt"
        self.own.parent.mkdir()
        self.own.write_bytes(CONTENT)
        self.own.chmod(0o640)
        self.blob = self.store.blob(SHA)
        self.blob.parent.mkdir(parents=True)
        self.digest = self.manifest("weights")

    def manifest(self, path: str, sha256: str = SHA, size: int = len(CONTENT)) -> str:
        made = Manifest.model_validate(
            {"kind": "fp16", "files": [{"path": path, "size": size, "sha256": sha256}]}
        )
        target = self.store.manifest_path(made.digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(made.to_bytes())
        return made.digest


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "ours")


def nothing_points_out(store: LocalStore) -> None:
    for path in store.root.rglob("*"):
        assert path.resolve().is_relative_to(store.root.resolve()) and not path.is_symlink()


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(
    "take",
    [
        lambda ours, theirs, digest: ours.push(theirs, digest),
        lambda ours, theirs, digest: theirs.pull(digest, ours),
    ],
    ids=["push", "pull"],
)
def test_a_blob_that_is_a_link_is_copied_and_the_file_behind_it_stays_its_owners(
    outside: Outside,
    store: LocalStore,
    relative: bool,
    take: Callable[[LocalStore, LocalStore, str], object],
) -> None:
    outside.blob.symlink_to(
        os.path.relpath(outside.own, outside.blob.parent) if relative else outside.own
    )
    take(store, outside.store, outside.digest)
    nothing_points_out(store)
    assert store.verify(outside.digest) == [] and not store.blob(SHA).samefile(outside.own)
    assert outside.own.stat().st_nlink == 1 and outside.own.stat().st_mode & 0o777 == 0o640
    outside.own.write_bytes(b"its owner goes on writing\n")
    assert store.verify(outside.digest) == []


def test_a_blob_that_is_a_link_to_something_else_is_refused_and_nothing_of_it_is_kept(
    outside: Outside, store: LocalStore
) -> None:
    outside.own.write_bytes(CONTENT[::-1])
    outside.blob.symlink_to(outside.own)
    with pytest.raises(ArtifactDamaged, match="changed: weights"):
        store.push(outside.store, outside.digest)
    assert not store.has(outside.digest) and not [
        path for path in store.root.rglob("*") if path.is_file() and path.name != ".lock"
    ]
    assert [str(problem) for problem in outside.store.verify(outside.digest)] == [
        f"changed: {outside.blob}"
    ]


def fifo(path: Path, outside: Outside) -> None:
    os.mkfifo(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "place",
    [
        lambda path, outside: path.symlink_to("/dev/zero"),
        lambda path, outside: path.symlink_to("/proc/version"),
        fifo,
        lambda path, outside: path.symlink_to(outside.own.parent),
        lambda path, outside: path.mkdir(),
        lambda path, outside: path.symlink_to(path.name),
        lambda path, outside: path.symlink_to("/nowhere"),
    ],
    ids=[
        "endless",
        "of no size, with content",
        "fifo",
        "link to a folder",
        "folder",
        "link to itself",
        "dangling",
    ],
)
@pytest.mark.parametrize("empty", [False, True], ids=["", "of no bytes"])
def test_a_blob_that_is_no_file_is_refused_and_never_waited_for(
    outside: Outside, store: LocalStore, place: Callable[[Path, Outside], None], empty: bool
) -> None:
    """Of no bytes: so large does every device say that it is."""
    sha256 = hashlib.sha256(b"" if empty else CONTENT).hexdigest()
    digest = outside.manifest("weights", sha256, 0 if empty else len(CONTENT))
    place(outside.store.blob(sha256), outside)
    with pytest.raises(ArtifactDamaged, match="weights"):
        store.push(outside.store, digest)
    assert not store.has(digest) and outside.store.verify(digest)
    if not empty:
        with pytest.raises(ArtifactDamaged, match="weights"):
            outside.store.read(digest, "weights")


@pytest.mark.timeout(20)
def test_a_manifest_that_never_ends_is_refused(outside: Outside) -> None:
    path = outside.store.manifest_path("a" * 64)
    path.symlink_to("/dev/zero")
    with pytest.raises(LmflowsError, match="does not hash to its name"):
        outside.store.manifest("a" * 64)


def test_a_manifest_larger_than_any_is_refused_even_if_its_name_is_its_hash(
    outside: Outside,
) -> None:
    data = b" " * (MAX_BYTES + 1)
    path = outside.store.manifest_path(hashlib.sha256(data).hexdigest())
    path.write_bytes(data)
    with pytest.raises(LmflowsError, match=f"more than {MAX_BYTES}"):
        outside.store.manifest(path.stem)


def test_a_tree_that_leads_out_is_found_and_its_pull_has_a_tree_of_its_own(
    outside: Outside, store: LocalStore
) -> None:
    outside.blob.write_bytes(CONTENT)
    tree = outside.store.tree(outside.digest)
    tree.mkdir(parents=True)
    secret = outside.own.with_name("secret")
    secret.write_bytes(b"secret")
    (tree / "weights").symlink_to(secret)
    (tree / "more").symlink_to(outside.own.parent)
    assert sorted(map(str, outside.store.verify(outside.digest))) == [
        "changed: weights",
        "extra: more",
    ]
    pulled = outside.store.pull(outside.digest, store)
    assert (pulled.path / "weights").read_bytes() == CONTENT and sorted(
        path.name for path in pulled.path.iterdir()
    ) == ["weights"]
    nothing_points_out(store)


def test_a_link_in_place_of_the_targets_tree_is_replaced_and_not_written_through(
    outside: Outside, store: LocalStore
) -> None:
    outside.blob.write_bytes(CONTENT)
    store.tree(outside.digest).parent.mkdir(parents=True)
    store.tree(outside.digest).symlink_to(outside.own.parent)
    store.push(outside.store, outside.digest)
    assert sorted(path.name for path in outside.own.parent.iterdir()) == ["own.txt"]
    assert store.verify(outside.digest) == []
