"""What all stores share: names by their first digits, and the order of lineage."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.manifest import Parent
from artifacts.store.local import LocalStore
from artifacts.store.protocol import lineage, match, open_store
from configs.errors import ArtifactMissing

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize("shape", ["{:.6}", "{:.63}", "{}", "sha256:{:.6}"])
def test_a_prefix_names_the_one_artifact_that_starts_with_it(shape: str) -> None:
    assert match(shape.format(DIGEST), ["f" * 64, DIGEST], where="here") == DIGEST


@pytest.mark.parametrize("shape", ["", "{:.5}", "sha256:", "sha256:{:.5}"])
def test_a_prefix_below_six_digits_names_nothing(shape: str) -> None:
    with pytest.raises(ArtifactMissing, match="too short"):
        match(shape.format(DIGEST), [DIGEST], where="here")


def test_a_prefix_that_nothing_starts_with_is_missing() -> None:
    with pytest.raises(ArtifactMissing, match="no artifact starts with"):
        match("zzzzzz", [DIGEST], where="here")


def test_a_prefix_of_two_artifacts_names_neither_and_the_same_one_twice_is_one() -> None:
    two = ["abcdef" + "0" * 58, "abcdef" + "1" * 58]
    with pytest.raises(ArtifactMissing, match="2 artifacts start with"):
        match("abcdef", two, where="here")
    assert match("abcdef1", two + two, where="here") == two[1]


def commit(store: LocalStore, name: str, *parents: str) -> str:
    with store.staging() as staging:
        staging.write(name, name.encode())
        return store.commit(
            staging,
            "fp16",
            parents=[
                Parent(role=f"p{number}", digest=digest) for number, digest in enumerate(parents)
            ],
        ).digest


def test_lineage_has_ancestors_first_and_each_once(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    root = commit(store, "root")
    left, right = commit(store, "left", root), commit(store, "right", root)
    leaf = commit(store, "leaf", left, right)
    assert lineage(store, [leaf, right]) == [root, left, right, leaf]


def test_a_lineage_deeper_than_the_stack_is_walked(tmp_path: Path) -> None:
    store, digest, wanted = LocalStore(tmp_path), "", []
    for number in range(1200):
        digest = commit(store, f"file{number}", *([digest] if digest else []))
        wanted.append(digest)
    assert lineage(store, [digest]) == wanted


def test_a_location_without_a_scheme_is_a_folder(tmp_path: Path) -> None:
    assert open_store(str(tmp_path)).location == str(tmp_path)
