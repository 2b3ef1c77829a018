"""What is printed is what was meant: nothing in a text is markup, and no line is folded."""

# covers flows/cli/commands.py

from __future__ import annotations

import io
import json

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from flows.cli.commands import add_command
from flows.cli.terminal import moving_progress, say, say_err, show_rows


def narrow() -> Console:
    return Console(file=io.StringIO(), width=40, force_terminal=True, color_system="truecolor")


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_text_is_printed_as_it_is() -> None:
    console = narrow()
    text = "/models/[bold]/x[/] 12 True " + "a long line " * 20
    say(text, console)
    assert printed(console) == text + "\n"


def test_messages_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say_err("[red] is no markup")
    assert capsys.readouterr() == ("", "[red] is no markup\n")


def test_rows_are_a_table_or_json_or_a_word_that_there_are_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"name": "[b]", "size": 1}, {"name": "two", "size": 22}]
    console = narrow()
    show_rows(rows, False, "none", console)
    title, first, second = printed(console).splitlines()
    assert "name" in title and "size" in title
    assert (first.split(), second.split()) == (["[b]", "1"], ["two", "22"])
    show_rows(rows, True, "none")
    assert json.loads(capsys.readouterr().out) == rows
    show_rows([], True, "none")
    assert json.loads(capsys.readouterr().out) == []
    console = narrow()
    show_rows([], False, "no [things]", console)
    assert printed(console) == "no [things]\n"


def test_progress_shows_nothing_where_nobody_watches(capfd: pytest.CaptureFixture[str]) -> None:
    with moving_progress("hashing") as progress:
        progress(0.5, "[half]")
    assert capfd.readouterr() == ("", "")


def test_a_list_of_commands_has_no_line_breaks_of_docstrings() -> None:
    def first() -> None:
        """Do something that takes
        two lines to tell.

        And more."""

    def second() -> None:
        """Do something else."""

    app = typer.Typer()
    add_command(app, first)
    add_command(app, second, "2nd")
    found = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"}).output
    assert "Do something that takes two lines to tell." in found and "And more" not in found
    assert "2nd" in found
