"""A program that is run to its end and never outlives who runs it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from configs.callbacks import Log, no_log
from tasks.runner.process import Streams, kill_group, start


def run(
    command: Sequence[str],
    *,
    handle: int | None = None,
    log: Log = no_log,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Run a program to its end; (exit status, the lines of its stdout and stderr).

    Args:
        handle: a lock's descriptor: the program and its children hold the lock, as long as any of
            them lives.
        log: hears the lines, as they come.
        environment: variables beside this process's own.
    """
    lines: list[str] = []
    child = start(
        command,
        Streams(stdout=subprocess.PIPE),
        environment=environment,
        pass_fds=[] if handle is None else [handle],
    )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            lines.append(line.decode(errors="replace").rstrip())
            log(lines[-1])
        return child.wait(), lines
    finally:
        kill_group(child)
        child.stdout.close()
