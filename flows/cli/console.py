"""What a run looks like on a terminal: a line for each finished step, a moving one for the step at
work; and the end."""

from __future__ import annotations

import shlex
import time

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from artifacts.registry.refs import STAGES
from configs.units import gb, mb
from flows.cli.terminal import show_rows
from flows.run.display import DISPLAY
from flows.run.summary import Summary
from tasks.reporting.markdown import one_line

PLAIN_SECONDS = 10.0  # between two progress lines where nothing can move, in a log file for example


class ConsoleDisplay:
    """Shows the steps of the runs in its body as they go. On a terminal the current step moves;
    elsewhere it prints a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console, self.started_at = console, time.monotonic()
        self._name, self._step_at, self._fraction, self._text, self._printed = "", 0.0, 0.0, "", 0.0
        self._live = (
            Live(
                get_renderable=self._current, console=console, refresh_per_second=4, transient=True
            )
            if console.is_terminal
            else None
        )

    def __enter__(self) -> ConsoleDisplay:
        self._token = DISPLAY.set(self)
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        DISPLAY.reset(self._token)
        if self._live:
            self._name = ""
            self._live.stop()

    def started(self, name: str, summary: str) -> None:
        self._name, self._step_at, self._fraction, self._text, self._printed = (
            name,
            time.monotonic(),
            0.0,
            summary,
            time.monotonic(),
        )
        if not self._live:
            self.console.print(
                f"{self._clock()}  start  {_title(name)} [dim]{escape(summary)}[/]",
                highlight=False,
                soft_wrap=True,
            )

    def progress(self, name: str, fraction: float, text: str) -> None:
        self._fraction, self._text = fraction, text
        if not self._live and time.monotonic() - self._printed > PLAIN_SECONDS:
            self._printed = time.monotonic()
            self.console.print(
                f"{self._clock()}    {fraction:4.0%} {_title(name)} [dim]{escape(text)}[/]",
                highlight=False,
                soft_wrap=True,
            )

    def note(self, text: str) -> None:
        self.console.print(
            f"{self._clock()}         {escape(text)}", style="dim", highlight=False, soft_wrap=True
        )

    def finished(self, name: str, seconds: float, reused: bool) -> None:
        how = "[cyan]reused[/]" if reused else "[green]done[/]  "
        self._close(f"{self._clock()}  {how} {_title(name)} [dim]{seconds:.1f} s[/]")

    def failed(self, name: str, seconds: float) -> None:
        self._close(f"{self._clock()}  [red]failed[/] {_title(name)} [dim]{seconds:.1f} s[/]")

    def _close(self, line: str) -> None:
        self._name = ""
        self.console.print(line, highlight=False)

    def _clock(self) -> str:
        elapsed = int(time.monotonic() - self.started_at)
        return f"{elapsed // 60:2d}:{elapsed % 60:02d}"

    def _current(self) -> Text:
        if not self._name:
            return Text(f"{self._clock()}  ...", style="dim")
        filled = round(20 * self._fraction)
        bar = "█" * filled + "░" * (20 - filled)
        return Text(
            f"{self._clock()}  {_title(self._name)} {bar} {self._fraction:4.0%}"
            f" {time.monotonic() - self._step_at:5.0f} s  {self._text}",
            no_wrap=True,
            overflow="ellipsis",
        )


def print_summary(
    console: Console, summary: Summary, *, seconds: float, peak_bytes: int, program: str
) -> None:
    """The end of a run: verdict, both models side by side, digests, the endpoint, and what to type
    next."""
    evidence = summary.evidence()
    verdict = summary.verdict
    console.print()
    colour = {"PASS": "green", "FAIL": "red"}.get(verdict.outcome, "yellow")
    console.print(
        f"[bold {colour}]{verdict.outcome}[/] {escape('; '.join(verdict.reasons))}", highlight=False
    )
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "fp16", summary.served.variant):
        rows.add_column(column, overflow="fold")
    parent_bytes = summary.parent.model_bytes
    candidate_bytes = summary.served.model_bytes
    smaller = parent_bytes / candidate_bytes
    rows.add_row(
        "size",
        mb(parent_bytes),
        f"{mb(candidate_bytes)} ({smaller:.2f} times smaller)",
    )
    rows.add_row(
        "perplexity",
        f"{evidence.perplexity_parent:.3f}",
        f"{evidence.perplexity_candidate:.3f} (ratio {evidence.perplexity_ratio:.4f})",
    )
    rows.add_row(
        "agreement", "", f"top-1 {evidence.top1_agreement:.1%}, mean KL {evidence.kl.mean:.4f} nats"
    )
    if verdict.difference:
        rows.add_row(
            "could have seen",
            "",
            f"a loss of {verdict.difference.smallest_detectable:.4f} nats a token",
        )
    for sample in evidence.samples:
        rows.add_row(
            escape(f"> {sample.prompt}"),
            escape(one_line(sample.parent)),
            escape(one_line(sample.candidate)),
        )
    console.print(rows, highlight=False)
    console.print()
    if len(summary.judged.variants) > 2 or "decode tokens/s" in summary.judged.variants[0]:
        show_rows(list(summary.judged.variants), False, "", console)
        console.print()
    if len(summary.asked.attempts) > 1:
        console.print(
            f"taken from {len(summary.asked.attempts)} attempts of the repair ladder\n",
            highlight=False,
        )
    if choice := summary.asked.choice:
        console.print(
            f"served for {escape(choice.objective)}: {escape(choice.why)}\n",
            highlight=False,
            soft_wrap=True,
        )
    facts = [("artifact", summary.served.model.digest), ("report", summary.report.digest)]
    if summary.promoted:
        moved = "" if summary.promoted.moved else " (pointed there already)"
        facts.append(("stage", f"{summary.name}/{summary.promoted.stage}{moved}"))
    if summary.deployed:
        facts.append(
            (
                "endpoint",
                (
                    f"{summary.deployed.url}/v1  model {summary.deployed.model_name}"
                    f"{' (was running)' if summary.deployed.reused else ''}"
                ),
            )
        )
        facts.append(
            (
                "",
                (
                    f"scores held-out text within {summary.deployed.score_difference:.4f} nats a"
                    " token of the evidence"
                ),
            )
        )
    if summary.reused:
        facts.append(("reused", ", ".join(name.replace("_", " ") for name in summary.reused)))
    facts.append(
        ("this run", f"{seconds:.0f} s, at most {gb(peak_bytes)} of memory over all processes")
    )
    for name, value in facts:
        console.print(f"{name:<10}{escape(value)}", highlight=False, soft_wrap=True)
    console.print()
    next_steps = [
        (f"{program} report {summary.report.short}", "the whole report"),
        (f"{program} ui", "runs, logs and reports in the Prefect UI"),
    ]
    if summary.promoted and summary.promoted.stage != STAGES[-1]:
        following = STAGES[STAGES.index(summary.promoted.stage) + 1]
        place = f" --store {shlex.quote(summary.store)}" if summary.store else ""
        next_steps.append(
            (
                (
                    f"{program} registry promote {summary.name} {summary.promoted.stage}"
                    f" {following}{place}"
                ),
                "when it has proved itself",
            )
        )
    if summary.deployed:
        next_steps = [
            (f"{program} chat {summary.name}", "talk to it"),
            (f"{program} stop {summary.name}", "take it down"),
            *next_steps,
        ]
    width = max(len(command) for command, _ in next_steps) + 3
    for command, what in next_steps:
        console.print(f"  {command:<{width}}[dim]{what}[/]", highlight=False, soft_wrap=True)


def _title(name: str) -> str:
    return f"{name.replace('_', ' '):<13}"
