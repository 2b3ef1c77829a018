"""What a child process writes: followed while it grows, and its last lines for an error.

Lines are as a terminal would show them: of a progress bar, whose carriage returns overwrite it, the
last state; no empty ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

LAST_LINES = 15
TAIL_BYTES = 64 * 1024  # more than the last lines ever need


def last_lines(source: Path | Iterable[str], count: int = LAST_LINES) -> str:
    """The end of an error's message: "its last lines:", and those of a log file or of lines that
    have been read, each indented on a line of its own."""
    lines = _shown(_end_of(source).split("\n") if isinstance(source, Path) else source)
    return "its last lines:" + "".join(f"\n    {line}" for line in lines[-count:] or ["(none)"])


class Tail:
    """The new whole lines of a growing file."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def lines(self, last: bool = False) -> list[str]:
        """Those that were finished since the last call; with `last`, also one that never will
        be."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        end = len(data) if last else data.rfind(b"\n") + 1
        self.offset += end
        return _shown(data[:end].decode(errors="replace").split("\n"))


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _shown(lines: Iterable[str]) -> list[str]:
    shown = (line.rstrip().rsplit("\r", 1)[-1] for line in lines)
    return [line for line in shown if line]
