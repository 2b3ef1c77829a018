"""A folder being filled on its way to becoming an artifact."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from artifacts.manifest import check_path
from artifacts.store import files


class Staging:
    """A folder being filled on its way to becoming an artifact. Made by `LocalStore.staging()`."""

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
