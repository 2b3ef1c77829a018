"""`lmflows config`: the schema of a pipeline's config, and whether a file follows it."""

from __future__ import annotations

import json

import typer

from configs.reader import load, overrides_of
from flows.cli.commands import add_command
from flows.cli.options import ConfigPath, Overrides
from flows.cli.terminal import say

app = typer.Typer(no_args_is_help=True, help="Pipeline configs.")


def schema() -> None:
    """Print the JSON schema of a pipeline config."""
    from configs.schema import Pipeline

    print(json.dumps(Pipeline.model_json_schema(), indent=2))


def check(config: ConfigPath, set_: Overrides = None) -> None:
    """Check a config, and that the files it names exist."""
    pipeline = load(config, overrides_of(set_ or []))
    say(f"{config}: a valid pipeline for {pipeline.name}")


add_command(app, schema)
add_command(app, check)
