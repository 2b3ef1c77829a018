"""The terminal: where lines, tables and moving lines are printed, and as JSON for a program."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.callbacks import Progress

# in a file or a pipe nothing shall be folded at 80 columns
out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)
err = Console(stderr=True)


def say(text: str, console: Console = out) -> None:
    """Print text as it is: nothing in it is markup, nothing is coloured, no line is folded."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def say_err(text: str) -> None:
    """The same on standard error."""
    say(text, err)


def show_rows(
    rows: list[dict[str, Any]], as_json: bool, nothing: str, console: Console = out
) -> None:
    """Print rows as a table, or as JSON for a program."""
    if as_json:
        print(json.dumps(rows, indent=2))
    elif rows:
        show_table(rows, console)
    else:
        say(nothing, console)


def show_table(rows: list[dict[str, Any]], console: Console = out) -> None:
    """Print rows, of which there is one at least, as a table for people."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    console.print(table, highlight=False)


@contextmanager
def moving_progress(what: str) -> Iterator[Progress]:
    """A line on standard error that moves, where somebody watches."""
    with err.status(escape(what)) as status:

        def progress(fraction: float, text: str) -> None:
            status.update(f"{escape(what)}: {fraction:.0%} {escape(text)}")

        yield progress
