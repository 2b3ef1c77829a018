"""Ctrl-C and SIGTERM: what they do while modules are imported, and while something has to be ended
in order. Imports next to nothing, for it is there before everything else."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERRUPTED = 130  # the exit status that shells give a program that Ctrl-C has ended


@contextmanager
def interrupt_ends_at_once(before: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Ctrl-C in the body ends the program with one line. The body only imports modules: there is
    nothing to clean up, and a KeyboardInterrupt in the middle of an import may get lost (in a
    callback) or come out as another error.

    Args:
        before: called before the line is written, to take a moving line off the terminal.
    """

    def end(_signal: int, _frame: FrameType | None) -> None:
        before()
        os.write(2, b"interrupted\n")
        os._exit(INTERRUPTED)

    # a shell that starts us in the background ignores Ctrl-C for us, and it stays ignored
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def termination_raises(error: BaseException) -> Iterator[None]:
    """SIGTERM raises this, so that a step's or a server's processes are ended in order."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise error

    previous: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
