"""How a long call tells what it does: its progress, and lines of log."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, str], None]  # a fraction in [0, 1] and a few words
Log = Callable[[str], None]  # one line


def no_progress(_fraction: float, _text: str) -> None:
    """The progress of something that nobody watches."""


def no_log(_text: str) -> None:
    """The log of something that nobody reads."""


def part_of(progress: Progress, start: float, length: float) -> Progress:
    """The progress of a part of something longer, which begins at `start` and takes `length` of
    it."""

    def part(fraction: float, text: str) -> None:
        progress(start + length * fraction, text)

    return part
