"""`lmflows compare`: any two models side by side, the second one judged beside the first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from configs.errors import VerdictFailed
from configs.reader import load, overrides_of
from flows.cli.options import Overrides, starting_prefect
from flows.cli.terminal import out, say, show_rows
from flows.run.environment import unreachable_is_an_error

Model = Annotated[
    str,
    typer.Argument(
        help="an artifact's digest or its first digits, or a folder with an unquantized model"
    ),
]
Config = Annotated[
    Path,
    typer.Option(
        help="a pipeline's YAML file, for its texts, evaluate, engine, benchmark and load sections"
    ),
]
KvCache = Annotated[str, typer.Option(help="the KV cache of both: -kv8 or -kv4")]


def compare(
    first: Model, second: Model, config: Config, kv: KvCache = "", set_: Overrides = None
) -> None:
    """Measure two models on the same text through the same engine, judge the second one beside the
    first, and write a report.

    The exit status is 3 if the verdict is not PASS."""
    overrides = overrides_of(set_ or [])
    load(config, overrides)
    with starting_prefect():
        from flows.cli.console import ConsoleDisplay
        from flows.compare_models import compare_models

    with ConsoleDisplay(out), unreachable_is_an_error():
        result = compare_models(first, second, str(config), kv, overrides)
    reasons = "; ".join(result.verdict.reasons)
    say(f"\n{result.verdict.outcome} {reasons}\n")
    show_rows(list(result.variants), False, "")
    say(f"\nreport    {result.report.digest}")
    if result.verdict.outcome != "PASS":
        raise VerdictFailed(
            reasons,
            where=f"verdict {result.verdict.outcome} for {second}",
            hint=f"`lmflows report {result.report.short}` shows it all",
        )
