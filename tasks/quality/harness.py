"""lm-evaluation-harness against an endpoint, as an option: any of its tasks, through the library
itself in a runtime of its own, whose dependencies must not meet ours.

Two endpoints' answers are compared in pairs by `tasks.quality.item_comparison`.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.records.items import HarnessMetric, HarnessResult, ItemOutcome
from configs import paths
from configs.callbacks import Log, no_log
from configs.errors import ConfigError, EndpointError
from tasks.runner import runtimes
from tasks.runner.output import last_lines

RUNTIME = "lm-eval"
KEY = "LMFLOWS_HARNESS_KEY"  # a command line is for all to see
PROGRESS = "answered"  # how a line of progress begins
# metrics that are 1 or 0 for each question, the most telling first
RIGHT_OR_WRONG = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "pass@1")
OFFLINE_WORDS = ("Connection", "offline", "hub", "Hub")
OFFLINE_HINT = (
    "its data may have to come from the Hugging Face hub: prepare that where there is a network, or"
    " name a local file in a task of your own"
)
TASKS_HINT = (
    "`--include` names a folder with task files of your own; the library's documentation lists its"
    " tasks"
)


@dataclass(frozen=True)
class ServedModel:
    """A served model, and how to ask it.

    Attributes:
        url: of the server, without /v1; it must have /get_ppl and /v1/completions, as LMDeploy's
            (0.14 and later) and ours do.
        tokenizer: the served model's folder; its tokenizer cuts questions and answers into tokens.
        key: the endpoint's API key.
        longest: most tokens of question and answer together.
        at_once: requests under way at a time.
        timeout_s: of one request.
        trust_remote_code: run the tokenizer's own Python files; the caller has checked their
            hashes.
    """

    url: str
    model: str
    tokenizer: Path
    key: str | None = None
    longest: int = 2048
    at_once: int = 4
    timeout_s: float = 600.0
    trust_remote_code: bool = False

    def settings(self) -> dict[str, Any]:
        """For `tasks.quality.harness_host.Settings`; without the key, which is no argument."""
        return {
            "url": self.url.rstrip("/").removesuffix("/v1"),
            "model": self.model,
            "tokenizer": str(self.tokenizer),
            "longest": self.longest,
            "at_once": self.at_once,
            "timeout_s": self.timeout_s,
            "trust_remote_code": self.trust_remote_code,
        }


@dataclass(frozen=True)
class HarnessTasks:
    """What is asked, and in which form.

    Attributes:
        names: tasks of the library, or of `include`.
        include: a folder of task files of one's own.
        limit: questions a task; None: all.
        fewshot: examples before each question; None: as the task says.
        chat: ask through the server's chat template.
    """

    names: Sequence[str]
    include: Path | None = None
    limit: int | None = None
    fewshot: int | None = None
    chat: bool = False


def run_harness(served: ServedModel, tasks: HarnessTasks, log: Log = no_log) -> HarnessResult:
    """Evaluate a served model with tasks of lm-evaluation-harness.

    Args:
        log: the library's lines, and every ten seconds one that begins with PROGRESS.

    Raises:
        ConfigError: an unknown task, or one that cannot be loaded; a folder that is not there; no
            runtime.
        EndpointError: the server does not answer, or refuses a request.
    """
    if tasks.include is not None and not tasks.include.is_dir():
        raise ConfigError(
            f"{tasks.include} is not a folder",
            where="--include",
            hint="name the folder that has the task files",
        )
    answer = _ask_host(served, tasks, log)
    if "error" in answer:
        raise _failure(answer["error"], tasks.names)
    return HarnessResult(
        url=served.url,
        model=served.model,
        version=answer["version"],
        metrics=tuple(_metrics(answer["results"])),
        outcomes=tuple(
            outcome
            for task, samples in answer["samples"].items()
            for outcome in _outcomes(task, samples)
        ),
    )


def _ask_host(served: ServedModel, tasks: HarnessTasks, log: Log) -> dict[str, Any]:
    """What the library's process wrote; an error if it wrote nothing."""
    request = {
        "tasks": list(tasks.names),
        "include": str(tasks.include.absolute()) if tasks.include else None,
        "limit": tasks.limit,
        "fewshot": tasks.fewshot,
        "chat": tasks.chat,
        "endpoint": served.settings(),
    }
    with tempfile.TemporaryDirectory(prefix="lmflows-harness-") as scratch:
        request_file = Path(scratch) / "request.json"
        answer_file = Path(scratch) / "answer.json"
        request_file.write_text(json.dumps(request))
        status, lines = runtimes.run_tool(
            RUNTIME,
            "tasks.quality.harness_host",
            [request_file, answer_file],
            log=log,
            environment=paths.process_environment() | {KEY: served.key or ""},
        )
        try:
            answer: dict[str, Any] = json.loads(answer_file.read_text())
        except FileNotFoundError:
            return {"error": f"exit status {status}; {last_lines(lines)}"}
    return answer


def _failure(error: str, tasks: Sequence[str]) -> ConfigError | EndpointError:
    where = f"lm-evaluation-harness, {', '.join(tasks)}"
    if " answered " in error or "did not answer" in error:
        return EndpointError(
            error.removeprefix("RuntimeError: "),
            where=where,
            hint="`lmflows status` tells whether it runs",
        )
    offline = os.environ.get("HF_HUB_OFFLINE") or any(word in error for word in OFFLINE_WORDS)
    return ConfigError(error, where=where, hint=OFFLINE_HINT if offline else TASKS_HINT)


def _metrics(results: Mapping[str, Mapping[str, Any]]) -> list[HarnessMetric]:
    """The library's table: its keys are `metric,filter`, and `metric_stderr,filter`."""
    found = []
    for task, figures in results.items():
        for name, value in figures.items():
            metric, comma, chosen = name.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                found.append(
                    HarnessMetric(
                        task=task,
                        metric=metric,
                        filter=chosen,
                        value=float(value),
                        stderr=_finite(figures.get(f"{metric}_stderr,{chosen}")),
                    )
                )
    return found


def _finite(value: Any) -> float | None:
    """A figure, unless the library has "N/A" or NaN for it."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def _outcomes(task: str, samples: Sequence[Mapping[str, Any]]) -> list[ItemOutcome]:
    """Right or wrong, question by question. A task with several filters counts as one task for
    each."""
    filters = {sample["filter"] for sample in samples}
    metric = next((name for name in RIGHT_OR_WRONG if _is_binary(name, samples)), None)
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


def _is_binary(metric: str, samples: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a metric is 1 or 0 for each of the questions."""
    return bool(samples) and all(sample["metrics"].get(metric) in (0, 1) for sample in samples)
