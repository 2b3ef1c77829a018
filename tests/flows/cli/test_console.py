"""A run on a terminal: a line for each finished step; in a pipe a line at its start, too, and one
now and then."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from flows.cli import console as module
from flows.cli.console import ConsoleDisplay
from flows.run.display import NoDisplay, display


def steps(console: Console, started_at: float | None = None) -> list[str]:
    with ConsoleDisplay(console, started_at) as shown:
        assert display() is shown
        shown.started("smoke_test", "fp16 [transformers]")
        shown.progress("smoke_test", 0.5, "loading [half]")
        shown.note("waits for a [GPU]")
        shown.finished("smoke_test", 2.34, False)
        shown.started("quantize", "awq")
        shown.finished("quantize", 61.0, True)
        shown.started("deploy", "")
        shown.failed("deploy", 0.1)
    assert isinstance(display(), NoDisplay)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_in_a_pipe_each_step_has_a_line_at_its_start_and_at_its_end() -> None:
    assert steps(Console(file=io.StringIO(), width=40)) == [
        " 0:00  start  smoke test    fp16 [transformers]",
        " 0:00         waits for a [GPU]",
        " 0:00  done   smoke test    2.3 s",
        " 0:00  start  quantize      awq",
        " 0:00  reused quantize      61.0 s",
        " 0:00  start  deploy        ",
        " 0:00  failed deploy        0.1 s",
    ]


def test_in_a_pipe_progress_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLAIN_SECONDS", -1.0)
    lines = steps(Console(file=io.StringIO(), width=80))
    assert " 0:00     50% smoke test    loading [half]" in lines


def test_the_clock_counts_from_the_start_of_the_run() -> None:
    lines = steps(Console(file=io.StringIO(), width=80), time.monotonic() - 125)
    assert all(re.match(r" 2:0[5-9]  ", line) for line in lines)


def test_at_a_terminal_the_step_at_work_moves_and_leaves_no_trace() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with ConsoleDisplay(console) as shown:
        shown.started("quantize", "awq")
        shown.progress("quantize", 0.25, "layer 3")
        assert shown._live
        shown._live.refresh()
        shown.finished("quantize", 2.0, False)
    assert isinstance(console.file, io.StringIO)
    output = console.file.getvalue()
    assert " 0:00  quantize      █████░░░░░░░░░░░░░░░  25%     0 s  layer 3" in output
    assert output.count("layer 3") == output.count("layer 3\r\x1b[2K"), "the line is taken away"
    assert " 0:00  done   quantize      2.0 s\n" in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l"), "the cursor stays hidden"
