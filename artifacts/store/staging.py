"""A folder being filled on its way to becoming an artifact."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from artifacts.manifest import FileEntry, check_path
from artifacts.store import files


class Staging:
    """A folder being filled on its way to becoming an artifact. Made by `LocalStore.staging()`.

    Attributes:
        known: bytes and hex sha256 of the files that were hashed on their way in.
        borrowed: the files that belong to somebody else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, tuple[int, str]] = {}
        self.borrowed: set[str] = set()

    def target(self, name: str) -> Path:
        """The path to write `name` to, with its parent folders made."""
        target = self.path / check_path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def write(self, name: str, data: bytes) -> None:
        """Write a new file, durably."""
        with self.target(name).open("xb") as file:  # never into a borrowed file
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.known[name] = (len(data), hashlib.sha256(data).hexdigest())

    def copy(self, source: Path, name: str) -> None:
        """Copy a file in, hashed on the way."""
        self.known[name] = files.copy_hashed(source, self.target(name))

    def borrow(self, source: Path, name: str) -> None:
        """Link a file that belongs to somebody else: no copy is made and its mode is left alone."""
        files.link_or_symlink(source, self.target(name))
        self.borrowed.add(name)

    def names(self) -> list[str]:
        """Every file in the folder, as sorted POSIX paths."""
        return files.tree_files(self.path)

    def entries(self) -> list[FileEntry]:
        """Every file in the folder as a manifest names it, durable, and read-only unless it is
        borrowed; sorted by path."""
        names = self.names()
        unsynced = [name for name in names if name not in self.known and name not in self.borrowed]
        # one thread waits for the disk while another computes
        with ThreadPoolExecutor(files.HASH_THREADS) as pool:
            synced = [pool.submit(self._sync, name) for name in unsynced]
            entries = list(pool.map(self._entry, names))
            for job in synced:
                job.result()
        return entries

    def _sync(self, name: str) -> None:
        with (self.path / name).open("rb") as file:
            os.fsync(file.fileno())

    def _entry(self, name: str) -> FileEntry:
        path = self.path / name
        if name not in self.known:
            self.known[name] = files.sha256_file(path)
        if name not in self.borrowed:
            path.chmod(0o444)
        size, sha256 = self.known[name]
        return FileEntry(path=name, size=size, sha256=sha256)
