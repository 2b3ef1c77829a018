"""A program that is run to its end and never outlives who runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from tasks.runner.parent import kill_group

Say = Callable[[str], None]


def silent(_text: str) -> None:
    """Hears lines and does nothing with them."""


# Runs a program that the kernel kills with its parent, however that ends: prctl(2)'s
# PR_SET_PDEATHSIG is 1, and outlives the exec.
GUARD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def run(
    command: Sequence[str],
    *,
    handle: int | None,
    say: Say = silent,
    environment: dict[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Run a program to its end; (exit status, its lines). It and its children hold `handle`, and so
    the lock, as long as any of them lives."""
    lines: list[str] = []
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", GUARD, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=[] if handle is None else [handle],
        env=os.environ | (environment or {}),
    )
    try:
        assert child.stdout is not None
        for line in child.stdout:
            lines.append(line.decode(errors="replace").rstrip())
            say(lines[-1])
        return child.wait(), lines
    finally:
        kill_group(child)
        if child.stdout:
            child.stdout.close()
