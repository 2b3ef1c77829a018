"""Who shows a run while it goes on: a terminal, or nobody. Knows no terminal itself."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

from prefect import get_run_logger


class Display(Protocol):
    """What a run tells of its steps; `name` is a step's name within the run."""

    def started(self, name: str, summary: str) -> None: ...

    def progress(self, name: str, fraction: float, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def finished(self, name: str, seconds: float, reused: bool) -> None: ...

    def failed(self, name: str, seconds: float) -> None: ...


class NoDisplay:
    """For runs that nobody watches on a terminal: the Prefect UI has it all."""

    def started(self, name: str, summary: str) -> None: ...

    def progress(self, name: str, fraction: float, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def finished(self, name: str, seconds: float, reused: bool) -> None: ...

    def failed(self, name: str, seconds: float) -> None: ...


DISPLAY: ContextVar[Display | None] = ContextVar("DISPLAY", default=None)


def display() -> Display:
    """The display of this context."""
    return DISPLAY.get() or NoDisplay()


def note(text: str) -> None:
    """One line to the run's log in Prefect and to its display."""
    get_run_logger().info(text)
    display().note(text)
