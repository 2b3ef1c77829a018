"""A folder becomes an artifact or leaves nothing, and files of somebody else are not touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.store.local import LocalStore
from artifacts.store.protocol import Problem
from tests.support.local_parts import CONTENT, borrow, commit, tmp_of


def test_files_in_an_artifact_are_read_only(store: LocalStore) -> None:
    artifact = commit(store)
    assert {(artifact.path / name).stat().st_mode & 0o777 for name in CONTENT} == {0o444}


def test_a_failed_stage_leaves_nothing(store: LocalStore) -> None:
    with pytest.raises(RuntimeError), store.staging() as staging:
        staging.write("weights", b"data")
        raise RuntimeError
    assert [path for path in store.root.rglob("*") if path.is_file()] == []
    assert tmp_of(store) == []


def test_writing_a_name_twice_is_refused_and_cannot_reach_a_borrowed_file(
    store: LocalStore, tmp_path: Path
) -> None:
    source = tmp_path / "config.json"
    source.write_bytes(b"theirs")
    with store.staging() as staging:
        staging.borrow(source, "config.json")
        with pytest.raises(FileExistsError):
            staging.write("config.json", b"ours")
    assert source.read_bytes() == b"theirs"


def test_a_borrowed_file_is_linked_and_its_mode_is_untouched(
    store: LocalStore, tmp_path: Path
) -> None:
    source = tmp_path / "model" / "weights"
    source.parent.mkdir()
    source.write_bytes(b"data")
    source.chmod(0o640)
    artifact = borrow(store, source.parent)
    assert (artifact.path / "weights").stat().st_ino == source.stat().st_ino
    assert source.stat().st_mode & 0o777 == 0o640
    assert store.verify(artifact.digest) == []


def test_a_file_borrowed_from_another_device_is_not_copied(
    store: LocalStore, elsewhere: Path
) -> None:
    (elsewhere / "weights").write_bytes(b"data")
    artifact = borrow(store, elsewhere)
    assert (artifact.path / "weights").resolve() == elsewhere / "weights"
    assert store.verify(artifact.digest) == []


@pytest.mark.parametrize("device", ["tmp_path", "elsewhere"])
def test_a_borrowed_file_that_its_owner_changes_is_found(
    store: LocalStore, device: str, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(device) / "model" / "weights"
    source.parent.mkdir()
    source.write_bytes(b"data")
    artifact = borrow(store, source.parent)
    source.write_bytes(b"tune")
    assert store.verify(artifact.digest) == [Problem("changed", "weights")]
