"""Locks of the kernel's: who may write into a folder. A lock ends with the process that holds it,
however that ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from configs.errors import StoreBusy

GATE_SECONDS = 600.0  # hashing a large artifact takes minutes


def try_lock(handle: int, how: int = fcntl.LOCK_EX) -> bool:
    """Take the lock of an open file or folder if nobody has it; it is kept until it is closed."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, however long it takes to get it."""
    with _opened(path) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def writing(root: Path) -> AbstractContextManager[None]:
    """Hold a store's lock together with others who write: nobody collects garbage meanwhile.

    Raises:
        StoreBusy: somebody collects, and does not finish within GATE_SECONDS.
    """
    return _gate(root, fcntl.LOCK_SH)


def collecting(root: Path) -> AbstractContextManager[None]:
    """Hold a store's lock alone: nobody else collects garbage, and nobody writes.

    Raises:
        StoreBusy: somebody does, and does not finish within GATE_SECONDS.
    """
    return _gate(root, fcntl.LOCK_EX)


@contextmanager
def _gate(root: Path, how: int) -> Iterator[None]:
    with _opened(root / ".lock") as handle:
        deadline = time.monotonic() + GATE_SECONDS
        while not try_lock(handle, how):
            if time.monotonic() > deadline:
                raise StoreBusy(
                    f"somebody else uses it for more than {GATE_SECONDS:.0f} s",
                    where=str(root),
                    hint="`lmflows registry gc` and what writes to a store wait for each other: try"
                    " again when it is done",
                )
            time.sleep(0.05)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield handle
    finally:
        os.close(handle)
