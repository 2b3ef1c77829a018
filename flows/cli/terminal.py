"""The terminal: where answers, messages and tables are printed."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

# in a file or a pipe nothing shall be folded at 80 columns
out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)
err = Console(stderr=True)


def show_rows(
    rows: list[dict[str, Any]], as_json: bool, nothing: str, console: Console = out
) -> None:
    """Print rows as a table, or as JSON for a program."""
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        console.print(nothing, markup=False, highlight=False, soft_wrap=True)
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in rows[0]:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(escape(str(value)) for value in row.values()))
        console.print(table, highlight=False)
