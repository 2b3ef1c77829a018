"""Folders for what is being written, below a store's `tmp`: each is locked while its process lives,
removed when it is done with, and swept when the process is gone."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from artifacts.store.locks import try_lock


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """A new folder below `root`/tmp, ours until the way out or the end of this process."""
    while True:
        path = root / "tmp" / uuid.uuid4().hex
        path.mkdir(parents=True)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # a sweep was faster
        if try_lock(handle) and path.exists():
            break
        os.close(handle)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def sweep(root: Path) -> int:
    """Remove what processes that are gone left half written; returns how many folders."""
    return sum(_sweep(path) for path in (root / "tmp").glob("*"))


def _sweep(path: Path) -> bool:
    with suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if try_lock(handle):
                shutil.rmtree(path, ignore_errors=True)
                return not path.exists()
        finally:
            os.close(handle)
    return False
