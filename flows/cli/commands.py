"""How a function becomes a command of the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import typer


def add_command(app: typer.Typer, function: Callable[..., None], name: str | None = None) -> None:
    """Add a function as a command, which its docstring describes. Typer's list of commands keeps
    the line breaks of a docstring; so they are taken out."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(name, help=text)(function)
