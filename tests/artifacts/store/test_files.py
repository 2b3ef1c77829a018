"""Files appear whole or not at all, and links name the same bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from artifacts.store import files
from configs.errors import DiskFull
from configs.paths import PROJECT


def test_a_copy_is_hashed_on_the_way_and_never_overwrites(tmp_path: Path) -> None:
    source, target, data = tmp_path / "a", tmp_path / "b", os.urandom(files.CHUNK + 1)
    source.write_bytes(data)
    assert (
        files.copy_hashed(source, target)
        == files.sha256_file(target)
        == (len(data), hashlib.sha256(data).hexdigest())
    )
    source.write_bytes(b"other")
    with pytest.raises(FileExistsError):
        files.copy_hashed(source, target)
    assert target.read_bytes() == data


WRITER = """
import sys
from pathlib import Path
from artifacts.store.files import write_atomic
print("ready", flush=True)
while True:
    for letter in (b"a", b"b"):
        write_atomic(Path(sys.argv[1]), letter * 300_000)
"""


def test_a_reader_and_a_kill_see_old_content_or_new_never_a_part(tmp_path: Path) -> None:
    path, whole = tmp_path / "ref.json", {b"a" * 300_000, b"b" * 300_000}
    path.write_bytes(b"a" * 300_000)
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, path], cwd=PROJECT, stdout=subprocess.PIPE
        )
        assert writer.stdout is not None and writer.stdout.readline()
        seen: set[bytes] = set()
        deadline = time.monotonic() + 20
        while len(seen) < 2 and time.monotonic() < deadline:
            seen |= {path.read_bytes() for _ in range(100)}
        writer.kill()
        writer.wait()
        writer.stdout.close()
        assert seen == whole, "the reader saw both contents, and nothing else"
        assert path.read_bytes() in whole


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        files.write_atomic(tmp_path / "taken", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_full_disk_leaves_the_old_content_and_is_named(tmpfs: Callable[[str], Path]) -> None:
    folder = tmpfs("size=1m")
    files.write_atomic(folder / "ref.json", b"old")
    with pytest.raises(DiskFull, match=r"ref\.json"):
        files.write_atomic(folder / "ref.json", b"x" * (2 << 20))
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("ref.json", b"old")]


def test_a_disk_without_room_for_one_more_folder_is_full(tmpfs: Callable[[str], Path]) -> None:
    folder = tmpfs("nr_inodes=1")
    with pytest.raises(DiskFull):
        files.write_atomic(folder / "refs" / "ref.json", b"data")


def test_a_disk_that_fills_up_below_a_library_is_full(tmpfs: Callable[[str], Path]) -> None:
    folder = tmpfs("size=1m")
    with pytest.raises(DiskFull), files.disk_full_is_an_error(str(folder)):
        save_file({"weights": np.ones((1024, 1024), np.float32)}, folder / "model.safetensors")


def test_other_errors_are_not_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.disk_full_is_an_error("here"):
        (tmp_path / "missing").read_bytes()


def test_a_link_on_one_device_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"data")
    (tmp_path / "alias").symlink_to("source")
    files.link_or_symlink(tmp_path / "alias", tmp_path / "target")
    assert not (tmp_path / "target").is_symlink()
    assert (tmp_path / "target").stat().st_ino == (tmp_path / "source").stat().st_ino


def test_a_link_across_devices_is_a_symlink_to_the_file_itself(
    tmp_path: Path, elsewhere: Path
) -> None:
    (elsewhere / "source").write_bytes(b"data")
    (elsewhere / "alias").symlink_to("source")
    files.link_or_symlink(elsewhere / "alias", tmp_path / "target")
    assert (tmp_path / "target").readlink() == elsewhere / "source"


def test_a_copy_across_devices_does_not_follow_its_source(tmp_path: Path, elsewhere: Path) -> None:
    (elsewhere / "source").write_bytes(b"data")
    files.link_or_copy(elsewhere / "source", tmp_path / "target")
    (elsewhere / "source").write_bytes(b"gone")
    assert (tmp_path / "target").read_bytes() == b"data"
    assert (tmp_path / "target").stat().st_mode & 0o222 == 0


def test_a_link_to_nothing_is_an_error_not_a_dangling_link(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.link_or_symlink(tmp_path / "missing", tmp_path / "target")
    assert not (tmp_path / "target").is_symlink()
