"""A small process that ends what a killed `lmflows run` would leave behind.

Steps look after themselves (tasks.runner.child); this is for what others start, above all Prefect's
ephemeral API server, which survives a kill -9 of the flow.
"""

from __future__ import annotations

import contextlib
import os
import time

import psutil

LOOK_SECONDS = 0.5


def watch_this_process() -> None:
    """Fork the watcher. Call before anything starts threads."""
    watched = os.getpid()
    if os.fork():
        return
    try:
        os.setsid()  # Ctrl-C is for the flow
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # whoever reads the flow's output must not wait for the watcher
            os.dup2(nowhere, stream)
        _watch(watched)
    finally:
        os._exit(0)


def _watch(watched: int) -> None:
    """Look at the process's descendants until it is gone, then kill those of the last look that are
    left.

    Only the last look counts: a server that has detached itself in between (supervisord) is no
    descendant any more.
    """
    last: list[psutil.Process] = []
    while os.getppid() == watched:
        with contextlib.suppress(psutil.Error):
            last = [
                child
                for child in psutil.Process(watched).children(recursive=True)
                if child.pid != os.getpid()
            ]
        time.sleep(LOOK_SECONDS)
    for process in last:
        # psutil compares start times, so a reused pid is safe
        with contextlib.suppress(psutil.Error):
            process.kill()
