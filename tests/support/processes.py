"""Which processes there are: what a test looks at to see that nothing was left behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import psutil


def children() -> set[int]:
    """This process's children, the dead ones that nobody has reaped among them."""
    return {child.pid for child in psutil.Process().children()}


def all_gone(pids: Iterable[int], seconds: float) -> bool:
    """Whether all of them have ended within that time. A zombie has; it only was not reaped."""
    pids = list(pids)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(map(_lives, pids)):
            return True
        time.sleep(0.05)
    return False


def with_environment(name: str, value: str) -> list[psutil.Process]:
    """The living processes that have this in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
