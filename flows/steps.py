"""Steps as Prefect tasks: one place that makes the task from a step's declaration, and runs it.

A task streams its child's log and progress to Prefect, retries what a retry can help, and answers from the cache when
everything that decides its result is equal and the store still holds, unharmed, what it made.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from prefect import Task, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE, CacheKeyFnPolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.tasks import exponential_backoff
from pydantic import BaseModel, ConfigDict, ValidationError

from artifacts.store import LocalStore
from configs import paths
from configs.errors import LmflowsError
from tasks.child import run_child
from tasks.gpus import cuda_is_visible
from tasks.step import Context, Result, Step

R = TypeVar("R", bound=Result)
PROGRESS_SECONDS = 2.0  # between two updates of the progress artifact: each is a request to the API
# One tag, where a limit makes sense (`prefect concurrency-limit create gpu 1`): for each tag Prefect asks its server for a
# slot, and behind SQLite that now and then takes two seconds.
GPU_STEPS = {"smoke_test", "quantize", "evaluate"}


class Display(Protocol):
    """Who shows a run on a terminal."""

    def started(self, name: str, summary: str) -> None: ...

    def progress(self, name: str, fraction: float, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def finished(self, name: str, seconds: float, reused: bool) -> None: ...

    def failed(self, name: str, seconds: float) -> None: ...


class NoDisplay:
    """For runs that nobody watches on a terminal: the UI has it all."""

    def started(self, name: str, summary: str) -> None: ...

    def progress(self, name: str, fraction: float, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def finished(self, name: str, seconds: float, reused: bool) -> None: ...

    def failed(self, name: str, seconds: float) -> None: ...


DISPLAY: ContextVar[Display | None] = ContextVar("DISPLAY", default=None)


class Stored(BaseModel):
    """What Prefect persists of a step: its answer as JSON, its wall time and the most memory of its largest process."""

    model_config = ConfigDict(frozen=True)

    answer: dict[str, Any]
    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Done(Generic[R]):
    """A finished step: the answer, what it took when it was really run, and whether that was now or earlier.

    `kept` is whether the next run can reuse it; then its times stay what they are, too.
    """

    name: str
    result: R
    seconds: float
    peak_rss_bytes: int
    reused: bool
    kept: bool


@dataclass(frozen=True)
class Run:
    """What the steps of one run share: the workspace and the folder for their requests and logs."""

    folder: Path
    store: LocalStore

    def perform(self, step: Step[Any, R], request: Any, *, timeout_minutes: float = 30) -> Done[R]:
        """Run a step as a Prefect task, or take its earlier answer.

        Raises:
            LmflowsError: what the step raised, after its retries.
        """
        display, started = DISPLAY.get() or NoDisplay(), time.monotonic()
        display.started(step.name, step.summary)
        try:
            stored, reused = self._attempt(step, request, timeout_minutes, refresh=False)
            if reused and not self._is_credible(step, stored):
                get_run_logger().warning("%s: the cached artifact is missing or damaged; it is made again", step.name)
                stored, reused = self._attempt(step, request, timeout_minutes, refresh=True)
        except BaseException:
            display.failed(step.name, time.monotonic() - started)
            raise
        display.finished(step.name, time.monotonic() - started, reused)
        return Done(name=step.name, result=step.result.model_validate(stored.answer), seconds=stored.seconds,
                    peak_rss_bytes=stored.peak_rss_bytes, reused=reused, kept=step.cached and request.cacheable)

    def has_done(self, step: Step[Any, Any], request: Any) -> bool:
        """Whether an earlier run has answered this request, as far as the results say."""
        return (results_folder() / step.cache_key(request)).exists()

    def _attempt(self, step: Step[Any, R], request: Any, timeout_minutes: float, *, refresh: bool) -> tuple[Stored, bool]:
        state = prefect_task(step).with_options(refresh_cache=refresh)(request, self, timeout_minutes * 60, return_state=True)
        return state.result(), state.name == "Cached"

    def _is_credible(self, step: Step[Any, R], stored: Stored) -> bool:
        """Whether a cached answer can be read, and the store still holds all that it names, unharmed and in its place."""
        try:
            return all(not self.store.verify(artifact.digest) and self.store.open(artifact.digest).path.samefile(artifact.path)
                       for artifact in step.result.model_validate(stored.answer).artifacts())
        except (LmflowsError, OSError, ValidationError):
            return False


@cache
def prefect_task(step: Step[Any, Any]) -> Task[[Any, Run, float], Stored]:
    """The Prefect task of a step."""

    def body(request: Any, run: Run, timeout_s: float) -> Stored:
        return _execute(step, request, run, timeout_s)

    def key(_context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
        return step.cache_key(parameters["request"]) if parameters["request"].cacheable else None

    return task(
        name=step.name.replace("_", " "), description=step.summary, task_run_name=step.name.replace("_", " "),
        tags=["gpu"] if step.name in GPU_STEPS and cuda_is_visible() else [],
        retries=step.retries, retry_delay_seconds=exponential_backoff(backoff_factor=2), retry_jitter_factor=0.5,
        retry_condition_fn=can_help, result_storage=results_folder(), cache_policy=CacheKeyFnPolicy(cache_key_fn=key) if step.cached else NO_CACHE,
        persist_result=step.cached, result_serializer="json", log_prints=False)(body)


def results_folder() -> Path:
    """Where answers are kept between runs; the same for the command line and for a worker."""
    return paths.home() / "results"


def can_help(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again can help: the error itself knows."""
    try:
        state.result()
    except LmflowsError as error:
        return error.retryable
    except BaseException:
        return False
    return False


def _execute(step: Step[Any, Any], request: Any, run: Run, timeout_s: float) -> Stored:
    listener = _Listener(step.name)
    if step.child:
        result, usage = run_child(step, request, folder=run.folder / step.name, store=run.store, timeout_s=timeout_s, listener=listener)
        return Stored(answer=result.model_dump(mode="json"), seconds=usage.seconds, peak_rss_bytes=usage.peak_rss_bytes)
    started = time.monotonic()
    result = step(request, _InProcess(run.store, listener))
    return Stored(answer=result.model_dump(mode="json"), seconds=round(time.monotonic() - started, 3), peak_rss_bytes=0)


class _InProcess(Context):
    """The context of a step that runs in the flow's own process."""

    def __init__(self, store: LocalStore, listener: _Listener) -> None:
        super().__init__(store)
        self._listener = listener

    def progress(self, fraction: float, text: str) -> None:
        self._listener.progress(fraction, text)

    def log(self, text: str) -> None:
        """To Prefect and to the terminal: a step in this process has few words, and they are meant for people."""
        self._listener.line(text)
        self._listener.display.note(text)


class _Listener:
    """Hands a step's log to Prefect's logger, and its progress to the terminal and to a progress artifact."""

    def __init__(self, name: str) -> None:
        self._name, self._logger, self.display = name, get_run_logger(), DISPLAY.get() or NoDisplay()
        self._artifact: Any = None
        self._updated = 0.0

    def line(self, text: str) -> None:
        self._logger.info(text)

    def progress(self, fraction: float, text: str) -> None:
        self.display.progress(self._name, fraction, text)
        if time.monotonic() - self._updated < PROGRESS_SECONDS:
            return
        self._updated = time.monotonic()
        if self._artifact is None:
            self._artifact = create_progress_artifact(progress=100 * fraction, description=self._name.replace("_", " "))
        else:
            update_progress_artifact(artifact_id=self._artifact, progress=100 * fraction)


def artifact_key(text: str) -> str:
    """A Prefect artifact key (lower case letters, digits and dashes) from any text."""
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split())


