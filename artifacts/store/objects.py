"""The small mutable files of a store, changed only by compare-and-swap: refs, and what else is not
content.

Locally that is a lock and a rename, on S3 a conditional write (`artifacts.store.s3.store`).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Protocol

from artifacts.manifest import check_path
from artifacts.store.files import write_atomic
from artifacts.store.locks import locked
from configs.errors import StaleRef


class Objects(Protocol):
    """Small files by key, a POSIX path relative to the store such as `refs/qwen/dev.json`."""

    def get(self, key: str) -> tuple[bytes, str] | None:
        """The content and its version, which `swap` compares; None if there is no such key."""
        ...

    def swap(self, key: str, data: bytes, *, seen: str | None) -> None:
        """Write, durably, if the version is still the one that `get` gave (None: there was
        nothing).

        Of all who swap from the same version exactly one succeeds; a retry after a lost answer
        counts as the same attempt.

        Raises:
            StaleRef: it is not; nothing was written.
            ConditionalWritesIgnored: the store cannot promise that.
        """
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write, durably, whatever is there: for what only one writes, or whose name is its
        content."""
        ...

    def probe(self) -> None:
        """Ask the store, once, whether `swap` can be relied on there.

        Raises:
            ConditionalWritesIgnored: it cannot.
            ConfigError, TransferError: the store cannot be reached or used.
        """
        ...

    def keys(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix`, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Remove a key; it need not exist."""
        ...


class LocalObjects:
    """Small files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: str) -> tuple[bytes, str] | None:
        try:
            data = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def swap(self, key: str, data: bytes, *, seen: str | None) -> None:
        path = self._path(key)
        with locked(path.with_suffix(".lock")):
            now = self.get(key)
            version = None if now is None else now[1]
            if version != seen:
                raise moved(key)
            write_atomic(path, data)

    def put(self, key: str, data: bytes) -> None:
        write_atomic(self._path(key), data)

    def probe(self) -> None:
        """A lock of the kernel's needs no proof."""

    def keys(self, prefix: str) -> list[str]:
        # pathlib would pass over a folder that cannot be read: what it holds would count as
        # unneeded
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        found = (
            Path(folder, name).relative_to(self.root).as_posix()
            for folder, _, names in os.walk(self.root / prefix.rpartition("/")[0], onerror=refuse)
            for name in names
            if name.endswith(".json") and not name.startswith(".")
        )
        return sorted(key for key in found if key.startswith(prefix))

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.root / check_path(key)


def moved(key: str) -> StaleRef:
    """What a lost race looks like."""
    return StaleRef(
        "was changed by somebody else in the meantime",
        where=key,
        hint="look at it, and do it again if it still holds",
    )
