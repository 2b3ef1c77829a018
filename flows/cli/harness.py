"""`lmflows harness`: tasks of lm-evaluation-harness against deployed endpoints, one alone or two in
pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from configs.errors import ConfigError
from flows.cli.options import check_place
from flows.cli.terminal import out, say_err, show_rows

if TYPE_CHECKING:
    from artifacts.records.items import HarnessResult, TaskComparison
    from tasks.quality.harness import HarnessTasks
    from tasks.serving.endpoints import Endpoint

LONGEST = 2048  # the library's own

EndpointName = Annotated[
    str | None, typer.Argument(help="a deployed endpoint's name; default: the only one")
]
Task = Annotated[
    list[str] | None,
    typer.Option("--task", help="a task of the library, or of --include; several times"),
]
Against = Annotated[
    str | None,
    typer.Option(help="another endpoint, to compare ENDPOINT with: the parent of the two"),
]
Include = Annotated[
    Path | None, typer.Option(file_okay=False, help="a folder with task files of your own")
]
QuestionLimit = Annotated[int | None, typer.Option(min=1, help="questions a task; default: all")]
Fewshot = Annotated[
    int | None,
    typer.Option(min=0, help="examples before each question; default: as the task says"),
]
Chat = Annotated[bool, typer.Option("--chat", help="ask through the server's chat template")]
Json = Annotated[Path | None, typer.Option("--json", help="write figures and answers to this file")]


def harness(
    endpoint: EndpointName = None,
    task: Task = None,
    against: Against = None,
    include: Include = None,
    limit: QuestionLimit = None,
    fewshot: Fewshot = None,
    chat: Chat = False,
    json_file: Json = None,
) -> None:
    """Ask an endpoint tasks of lm-evaluation-harness; with --against two of them, compared question
    by question."""
    from tasks.quality.harness import RUNTIME, HarnessTasks
    from tasks.quality.item_comparison import compare_items
    from tasks.runner import runtimes

    if not task:
        raise ConfigError(
            "which task?",
            where="--task",
            hint="for example --task arc_easy, or one of your own with --include FOLDER",
        )
    check_place(json_file)
    asked = endpoints_asked(endpoint, against)
    questions = HarnessTasks(task, include, limit, fewshot, chat)
    runtimes.prepare(RUNTIME, log=say_err)
    results = [ask(endpoint, questions) for endpoint in asked]
    comparison: tuple[TaskComparison, ...] = ()
    if len(results) == 2:
        comparison = compare_items(results[0].outcomes, results[1].outcomes)
    show_answers(asked, results, comparison)
    if json_file is not None:
        figures = {
            "endpoints": [result.model_dump(mode="json") for result in results],
            "comparison": [compared.model_dump(mode="json") for compared in comparison],
        }
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


def endpoints_asked(name: str | None, against: str | None) -> list[Endpoint]:
    """The endpoint, or the parent and the endpoint.

    Raises:
        ConfigError: both are the same one.
    """
    from tasks.serving import endpoints

    if against is None:
        return [endpoints.get(name)]
    parent = endpoints.get(against)
    candidate = endpoints.get(name)
    if parent.name == candidate.name:
        raise ConfigError(
            f"{against} would be compared with itself",
            where="--against",
            hint="name another endpoint",
        )
    return [parent, candidate]


def ask(endpoint: Endpoint, questions: HarnessTasks) -> HarnessResult:
    """Ask one endpoint, and tell on stderr how far it is."""
    from tasks.checkpoints.files import read_config
    from tasks.quality.harness import PROGRESS, ServedModel, run_harness

    def log(line: str) -> None:
        if line.startswith(PROGRESS):
            say_err(f"{endpoint.name} {line}")

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
    return run_harness(served, questions, log)


def show_answers(
    asked: list[Endpoint], results: list[HarnessResult], comparison: tuple[TaskComparison, ...]
) -> None:
    """Print the figures of each endpoint, and of two how they compare."""
    for endpoint, result in zip(asked, results, strict=True):
        title = f"{endpoint.name}, lm-evaluation-harness {result.version}"
        out.print(title, highlight=False, style="bold")
        show_rows(figure_rows(result), False, "no figures")
    if len(asked) == 2:
        out.print(f"{asked[1].name} beside {asked[0].name}", highlight=False, style="bold")
        show_rows(
            comparison_rows(comparison),
            False,
            "no question is right or wrong by itself: nothing to compare in pairs",
        )


def figure_rows(result: HarnessResult) -> list[dict[str, Any]]:
    """A row for each figure, for a table."""
    return [
        {
            "task": metric.task,
            "metric": metric.metric,
            "filter": metric.filter,
            "value": f"{metric.value:.4f}",
            "standard error": "" if metric.stderr is None else f"{metric.stderr:.4f}",
        }
        for metric in result.metrics
    ]


def comparison_rows(tasks: tuple[TaskComparison, ...]) -> list[dict[str, Any]]:
    """A row for each task, for a table."""
    return [
        {
            "task": task.task,
            "questions": task.n,
            "parent": f"{task.parent_accuracy:.1%}",
            "candidate": f"{task.candidate_accuracy:.1%}",
            "lost": task.lost,
            "gained": task.gained,
            "p (worse)": f"{task.p_worse:.3g}",
            "p (Holm)": f"{task.p_worse_holm:.3g}",
            "smallest drop seen": (
                "none" if task.detectable_drop is None else f"{task.detectable_drop:.1%}"
            ),
            "asked of one only": task.only_parent + task.only_candidate,
        }
        for task in tasks
    ]
