"""The one way to start a child process, and the one way to end it.

A program that `start` runs never outlives whoever started it, however that ends: a small program
(`tasks/runner/guard.py`) asks the kernel for that and then becomes the one that was wanted. None of
our code runs between fork and exec, so a process that has threads may call it.

The kernel looks at the *thread* that called `start` (prctl(2), PR_SET_PDEATHSIG): that thread has
to live as long as the child shall. A thread that starts a server and ends takes the server along.

Knows nothing of what the program does; `tasks.runner.output` reads what it writes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

GUARD = Path(__file__).with_name("guard.py")
DYING_SECONDS = 5.0  # SIGKILL is quick, but a process in the middle of a large write takes its time
LOOK_SECONDS = 0.01

Stream = int | IO[bytes]


@dataclass(frozen=True)
class Streams:
    """What a program reads and writes: files, descriptors, or subprocess.PIPE. Unless said
    otherwise, it reads nothing, and its errors go where its output goes."""

    stdout: Stream
    stderr: Stream = subprocess.STDOUT
    stdin: Stream = subprocess.DEVNULL


def module_command(
    module: str, *words: str | Path, python: str | Path = sys.executable
) -> list[str]:
    """The command line that runs one of our modules, or a library's. The folder that somebody
    stands in is no package (-P): our own modules are found by `paths.process_environment()`."""
    return [str(python), "-P", "-m", module, *map(str, words)]


def start(
    command: Sequence[str | Path],
    streams: Streams,
    *,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    own_session: bool = True,
    dies_by: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a program that ends with this process, and with the thread that calls this.

    Args:
        command: the program's absolute path, and its words. One that cannot be run says so on its
            stderr and ends with status 127.
        environment: variables beside this process's own.
        pass_fds: the descriptors that it inherits, under their numbers.
        own_session: it leads a process group, and Ctrl-C does not reach it: end it with
            `kill_group`. Otherwise it belongs to this process's group and is killed with that: what
            a step starts and waits for.
        dies_by: the signal that the kernel sends it. SIGTERM for one that has others to end.
    """
    guard = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), str(int(dies_by))]
    return subprocess.Popen(
        [*guard, *map(str, command)],
        stdin=streams.stdin,
        stdout=streams.stdout,
        stderr=streams.stderr,
        pass_fds=pass_fds,
        start_new_session=own_session,
        env=os.environ | (environment or {}),
    )


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kill every process that is left in the group that a child leads, reap the child, and wait
    until all are gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    deadline = time.monotonic() + DYING_SECONDS
    while _members(child.pid) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)


def how_it_ended(returncode: int) -> str:
    """An exit status in words. A shell, and a step's leader, say 128 + N for signal N."""
    number = ending_signal(returncode)
    return f"exit status {returncode}" if number is None else f"signal {number.name}"


def ending_signal(returncode: int) -> signal.Signals | None:
    """The signal that ended a process, or None."""
    number = -returncode if returncode < 0 else returncode - 128
    known = {item.value for item in signal.Signals}
    return signal.Signals(number) if number in known else None


def _members(group: int) -> list[psutil.Process]:
    """The living processes of a process group; a zombie is dead, it only has not been reaped."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
