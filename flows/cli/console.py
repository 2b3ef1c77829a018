"""What a run looks like on a terminal while it goes: a line for each finished step, and a moving
one for the step at work."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from flows.run.display import DISPLAY

PLAIN_SECONDS = 10.0  # between two progress lines where nothing can move, in a log file for example
BAR_WIDTH = 20


@dataclass
class CurrentStep:
    """The step at work, and what it has last said of itself."""

    name: str
    text: str
    fraction: float = 0.0
    started_at: float = field(default_factory=time.monotonic)

    @property
    def title(self) -> str:
        return _title(self.name)


class ConsoleDisplay:
    """Shows the steps of the runs in its body as they go. On a terminal the current step moves;
    elsewhere it prints a line now and then.

    Args:
        started_at: when the run began, by `time.monotonic`; the clock of each line counts from
            there.
    """

    def __init__(self, console: Console, started_at: float | None = None) -> None:
        self.console = console
        self.started_at = time.monotonic() if started_at is None else started_at
        self._step: CurrentStep | None = None
        self._printed_at = 0.0
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(
                get_renderable=self._moving_line,
                console=console,
                refresh_per_second=4,
                transient=True,
            )

    def __enter__(self) -> ConsoleDisplay:
        self._token = DISPLAY.set(self)
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        DISPLAY.reset(self._token)
        if self._live:
            self._step = None
            self._live.stop()

    def started(self, name: str, summary: str) -> None:
        self._step = CurrentStep(name, summary)
        self._printed_at = time.monotonic()
        if not self._live:
            self._print(f"  start  {self._step.title} [dim]{escape(summary)}[/]")

    def progress(self, name: str, fraction: float, text: str) -> None:
        if self._step:
            self._step.fraction = fraction
            self._step.text = text
        if not self._live and time.monotonic() - self._printed_at > PLAIN_SECONDS:
            self._printed_at = time.monotonic()
            self._print(f"    {fraction:4.0%} {_title(name)} [dim]{escape(text)}[/]")

    def note(self, text: str) -> None:
        self._print(f"         {escape(text)}", style="dim")

    def finished(self, name: str, seconds: float, reused: bool) -> None:
        how = "[cyan]reused[/]" if reused else "[green]done[/]  "
        self._close(f"  {how} {_title(name)} [dim]{seconds:.1f} s[/]")

    def failed(self, name: str, seconds: float) -> None:
        self._close(f"  [red]failed[/] {_title(name)} [dim]{seconds:.1f} s[/]")

    def _close(self, text: str) -> None:
        self._step = None
        self._print(text)

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(f"{self._clock()}{text}", style=style, highlight=False, soft_wrap=True)

    def _clock(self) -> str:
        elapsed = int(time.monotonic() - self.started_at)
        return f"{elapsed // 60:2d}:{elapsed % 60:02d}"

    def _moving_line(self) -> Text:
        step = self._step
        if step is None:
            return Text(f"{self._clock()}  ...", style="dim")
        filled = round(BAR_WIDTH * step.fraction)
        bar = "█" * filled + "░" * (BAR_WIDTH - filled)
        seconds = time.monotonic() - step.started_at
        return Text(
            f"{self._clock()}  {step.title} {bar} {step.fraction:4.0%} {seconds:5.0f} s"
            f"  {step.text}",
            no_wrap=True,
            overflow="ellipsis",
        )


def _title(name: str) -> str:
    return f"{name.replace('_', ' '):<13}"
