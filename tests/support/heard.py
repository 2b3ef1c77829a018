"""A listener of a step's child process that remembers."""

from __future__ import annotations

from collections.abc import Callable


class Heard:
    """A listener that remembers."""

    def __init__(self, on_line: Callable[[], None] | None = None) -> None:
        self.lines: list[str] = []
        self.events: list[tuple[float, str]] = []
        self.on_line = on_line

    def line(self, text: str) -> None:
        self.lines.append(text)
        if self.on_line:
            self.on_line()

    def progress(self, fraction: float, text: str) -> None:
        self.events.append((fraction, text))
