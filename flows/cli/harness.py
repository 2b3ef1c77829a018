"""`lmflows harness`: tasks of lm-evaluation-harness against deployed endpoints, one alone or two in
pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs.errors import ConfigError
from flows.cli.terminal import err, out, show_rows

if TYPE_CHECKING:
    from artifacts.records.items import HarnessResult, TaskComparison
    from tasks.serving.endpoints import Endpoint

LONGEST = 2048  # the library's own


def harness(
    endpoint: Annotated[
        str | None, typer.Argument(help="a deployed endpoint's name; default: the only one")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="a task of the library, or of --include; several times"),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="another endpoint, to compare ENDPOINT with: the parent of the two"),
    ] = None,
    include: Annotated[
        Path | None, typer.Option(file_okay=False, help="a folder with task files of your own")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="questions a task; default: all")] = None,
    fewshot: Annotated[
        int | None,
        typer.Option(min=0, help="examples before each question; default: as the task says"),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="ask through the server's chat template")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write figures and answers to this file")
    ] = None,
) -> None:
    """Ask an endpoint tasks of lm-evaluation-harness; with --against two of them, compared question
    by question."""
    from tasks.quality.harness import RUNTIME
    from tasks.quality.item_comparison import compare_items
    from tasks.runner import runtimes
    from tasks.serving import endpoints

    if not task:
        raise ConfigError(
            "which task?",
            where="--task",
            hint="for example --task arc_easy, or one of your own with --include FOLDER",
        )
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ConfigError(
            f"{json_file.parent} is not a folder", where="--json", hint="make it first"
        )
    asked = [
        endpoints.get(name) for name in ((endpoint,) if against is None else (against, endpoint))
    ]
    if against is not None and asked[0].name == asked[1].name:
        raise ConfigError(
            f"{against} would be compared with itself",
            where="--against",
            hint="name another endpoint",
        )
    runtimes.prepare(
        RUNTIME, log=lambda text: err.print(text, markup=False, highlight=False, soft_wrap=True)
    )
    found = [_ask(one, task, include, limit, fewshot, chat) for one in asked]
    comparison = compare_items(found[0].outcomes, found[1].outcomes) if against is not None else ()
    for one, result in zip(asked, found, strict=True):
        out.print(
            f"{one.name}, lm-evaluation-harness {result.version}", highlight=False, style="bold"
        )
        show_rows(_figures(result), False, "no figures")
    if against is not None:
        out.print(f"{asked[1].name} beside {asked[0].name}", highlight=False, style="bold")
        show_rows(
            comparison_rows(comparison),
            False,
            "no question is right or wrong by itself: nothing to compare in pairs",
        )
    if json_file is not None:
        json_file.write_text(
            json.dumps(
                {
                    "endpoints": [result.model_dump(mode="json") for result in found],
                    "comparison": [one.model_dump(mode="json") for one in comparison],
                },
                indent=1,
            )
            + "\n"
        )


def _ask(
    endpoint: Endpoint,
    tasks: list[str],
    include: Path | None,
    limit: int | None,
    fewshot: int | None,
    chat: bool,
) -> HarnessResult:
    from tasks.checkpoints.files import read_config
    from tasks.quality.harness import PROGRESS, HarnessTasks, ServedModel, run_harness

    def log(line: str) -> None:
        if line.startswith(PROGRESS):
            err.print(f"{endpoint.name} {line}", markup=False, highlight=False)

    limits = (
        LONGEST,
        getattr(endpoint.engine, "session_len", None),
        read_config(endpoint.artifact.path).get("max_position_embeddings"),
    )
    served = ServedModel(
        url=endpoint.url,
        model=endpoint.model_name,
        tokenizer=endpoint.artifact.path,
        key=next(iter(endpoint.keys()), None),
        longest=min(filter(None, limits)),
        trust_remote_code=endpoint.trust_remote_code,
    )
    return run_harness(served, HarnessTasks(tasks, include, limit, fewshot, chat), log)


def _figures(result: HarnessResult) -> list[dict[str, Any]]:
    return [
        {
            "task": one.task,
            "metric": one.metric,
            "filter": one.filter,
            "value": f"{one.value:.4f}",
            "standard error": "" if one.stderr is None else f"{one.stderr:.4f}",
        }
        for one in result.metrics
    ]


def comparison_rows(tasks: tuple[TaskComparison, ...]) -> list[dict[str, Any]]:
    """A row for each task, for a table."""
    return [
        {
            "task": one.task,
            "questions": one.n,
            "parent": f"{one.parent_accuracy:.1%}",
            "candidate": f"{one.candidate_accuracy:.1%}",
            "lost": one.lost,
            "gained": one.gained,
            "p (worse)": f"{one.p_worse:.3g}",
            "p (Holm)": f"{one.p_worse_holm:.3g}",
            "smallest drop seen": (
                "none" if one.detectable_drop is None else f"{one.detectable_drop:.1%}"
            ),
            "asked of one only": one.only_parent + one.only_candidate,
        }
        for one in tasks
    ]
