"""What a step's child process said."""

from __future__ import annotations


class Heard:
    """Remembers log lines and progress, in the order in which they came."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[tuple[float, str]] = []

    def log(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, fraction: float, text: str) -> None:
        self.events.append((fraction, text))
