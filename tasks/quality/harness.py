"""lm-evaluation-harness against an endpoint, as an option: any of its tasks, through the library
itself in a runtime of its own, whose dependencies must not meet ours. Two endpoints' answers are
compared in pairs by `tasks.quality.items.compare_items`.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts.records.items import HarnessMetric, HarnessResult, ItemOutcome
from configs import paths
from configs.errors import ConfigError, EndpointError
from tasks.runner import runtimes

RUNTIME = "lm-eval"
KEY = "LMFLOWS_HARNESS_KEY"  # a command line is for all to see
TOLD = "answered"  # how a line of progress begins
# metrics that are 1 or 0 for each question, the most telling first
RIGHT_OR_WRONG = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "pass@1")
LAST_LINES = 8


def run_harness(
    endpoint_url: str,
    model_name: str,
    tokenizer_folder: Path,
    tasks: Sequence[str],
    include_path: Path | None = None,
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    chat: bool = False,
    key: str | None = None,
    longest: int = 2048,
    at_once: int = 4,
    timeout_s: float = 600.0,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> HarnessResult:
    """Evaluate a served model with tasks of lm-evaluation-harness.

    Args:
        endpoint_url: of the server, without /v1; it must have /get_ppl and /v1/completions, as
            LMDeploy's (0.14 and later) and ours do.
        tokenizer_folder: the served model's folder; its tokenizer cuts questions and answers into
            tokens.
        include_path: a folder of task files of one's own.
        limit: questions a task; None: all.
        fewshot: examples before each question; None: as the task says.
        chat: ask through the server's chat template.
        key: the endpoint's API key.
        longest: most tokens of question and answer together.
        at_once: requests under way at a time.
        timeout_s: of one request.
        trust_remote_code: run the tokenizer's own Python files; the caller has checked their
            hashes.
        say: hears the library's lines, and every ten seconds one that begins with TOLD.

    Raises:
        ConfigError: an unknown task, or one that cannot be loaded; a folder that is not there; no
            runtime.
        EndpointError: the server does not answer, or refuses a request.
    """
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(
            f"{include_path} is not a folder",
            where="--include",
            hint="name the folder that has the task files",
        )
    with tempfile.TemporaryDirectory(prefix="lmflows-harness-") as scratch:
        request, answer = Path(scratch) / "request.json", Path(scratch) / "answer.json"
        request.write_text(
            json.dumps(
                {
                    "tasks": list(tasks),
                    "include": str(include_path.absolute()) if include_path else None,
                    "limit": limit,
                    "fewshot": fewshot,
                    "endpoint": {
                        "url": endpoint_url.rstrip("/").removesuffix("/v1"),
                        "model": model_name,
                        "tokenizer": str(tokenizer_folder),
                        "chat": chat,
                        "longest": longest,
                        "at_once": at_once,
                        "timeout_s": timeout_s,
                        "trust_remote_code": trust_remote_code,
                    },
                }
            )
        )
        # -P: the folder that somebody stands in is no package
        status, lines = runtimes.run_tool(
            RUNTIME,
            ["-P", "-m", "tasks.quality.harness_host", str(request), str(answer)],
            say=say,
            environment=paths.process_environment() | {KEY: key or ""},
        )
        try:
            found: dict[str, Any] = json.loads(answer.read_text())
        except FileNotFoundError:
            found = {
                "error": (
                    f"exit status {status}; its last lines:\n    "
                    + "\n    ".join(lines[-LAST_LINES:])
                )
            }
    if "error" in found:
        raise _failure(found["error"], tasks)
    return HarnessResult(
        url=endpoint_url,
        model=model_name,
        version=found["version"],
        metrics=tuple(_metrics(found["results"])),
        outcomes=tuple(
            outcome
            for task, samples in found["samples"].items()
            for outcome in _outcomes(task, samples)
        ),
    )


def _failure(error: str, tasks: Sequence[str]) -> ConfigError | EndpointError:
    where = f"lm-evaluation-harness, {', '.join(tasks)}"
    if " answered " in error or "did not answer" in error:
        return EndpointError(
            error.removeprefix("RuntimeError: "),
            where=where,
            hint="`lmflows status` tells whether it runs",
        )
    offline = os.environ.get("HF_HUB_OFFLINE") or any(
        word in error for word in ("Connection", "offline", "hub", "Hub")
    )
    return ConfigError(
        error,
        where=where,
        hint=(
            "its data may have to come from the Hugging Face hub: prepare that where there is a"
            " network, or name a local file in a task of your own"
            if offline
            else (
                "`--include` names a folder with task files of your own; the library's"
                " documentation lists its tasks"
            )
        ),
    )


def _metrics(results: Mapping[str, Mapping[str, Any]]) -> list[HarnessMetric]:
    """The library's table: its keys are `metric,filter`, and `metric_stderr,filter`."""
    found = []
    for task, figures in results.items():
        for name, value in figures.items():
            metric, comma, chosen = name.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                error = figures.get(f"{metric}_stderr,{chosen}")
                found.append(
                    HarnessMetric(
                        task=task,
                        metric=metric,
                        filter=chosen,
                        value=float(value),
                        stderr=(
                            float(error)
                            if isinstance(error, int | float) and math.isfinite(error)
                            else None
                        ),
                    )
                )
    return found


def _outcomes(task: str, samples: Sequence[Mapping[str, Any]]) -> list[ItemOutcome]:
    """Right or wrong, question by question. A task with several filters counts as one task for
    each."""
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    metric = next(
        (
            name
            for name in RIGHT_OR_WRONG
            if samples and all(sample["metrics"].get(name) in (0, 1) for sample in samples)
        ),
        None,
    )
    if metric is None:
        return []
    return [
        ItemOutcome(
            task=task if len(filters) == 1 else f"{task}, {sample['filter']}",
            item=sample["id"],
            answer=sample["answer"],
            correct=sample["metrics"][metric] == 1,
        )
        for sample in samples
    ]
