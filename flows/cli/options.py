"""What several commands share: options, their values checked, Prefect's start, and the file of
figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console

from configs.engines import BY_NAME
from configs.errors import ConfigError
from flows.cli.signals import interrupt_ends_at_once
from flows.cli.terminal import err

T = TypeVar("T")

ConfigPath = Annotated[Path, typer.Argument(help="a pipeline's YAML file")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="replace a value of the config, by dotted key path"
    ),
]

Model = Annotated[
    str, typer.Argument(help="an artifact's digest or its first digits, or a model folder")
]
Json = Annotated[Path | None, typer.Option("--json", help="write the raw figures to this file")]
EngineName = Annotated[str, typer.Option("--engine", help=f"one of {', '.join(BY_NAME)}")]
VariantName = Annotated[
    str, typer.Option("--variant", help="only its KV cache counts here: -kv8, -kv4 or none")
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="run the folder's Python files; an artifact holds only reviewed ones",
    ),
]


@contextmanager
def starting_prefect(console: Console = err, *, quiet: bool = True) -> Iterator[None]:
    """Make Prefect ready for a flow in this process, and see to it that its server ends with us.

    The body imports the flow, and with it Prefect, which takes seconds: a line moves meanwhile
    where somebody watches.

    Args:
        quiet: keep Prefect's own log lines off the terminal.
    """
    status = console.status("starting Prefect")
    with interrupt_ends_at_once(status.stop):
        from flows.run import environment, server_guard

        environment.prepare(quiet=quiet)
        server_guard.watch_this_process()  # it forks: before the moving line starts a thread
        with status:
            yield


def checked(kind: Callable[..., T], **values: Any) -> T:
    """A section or a request, from what was given on the command line; ConfigError if that cannot
    be."""
    try:
        return kind(**values)
    except ValidationError as error:
        detail = error.errors()[0]
        name = f"--{detail['loc'][0]}".replace("_", "-") if detail["loc"] else "options"
        raise ConfigError(
            f"{detail['input']!r} is not allowed: {detail['msg'].removeprefix('Value error, ')}",
            where=name,
        ) from None


def numbers(text: str, kind: Callable[[str], Any]) -> list[Any]:
    """The values of an option with several; ConfigError if one of them is no number."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{text!r} is not a list of numbers separated by commas",
            where="option",
            hint="for example 1,16,64",
        ) from None


def check_place(path: Path | None) -> None:
    """Refuse a file that could not be written, before hours of measuring and not after them."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ConfigError(f"{path.parent} is not a folder", where="--json", hint="make it first")


def write_figures(path: Path | None, figures: BaseModel) -> None:
    """Write the raw figures, if a file for them was named."""
    if path is not None:
        path.write_text(figures.model_dump_json(indent=2) + "\n")
