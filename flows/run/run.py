"""Steps as Prefect tasks: one place that makes the task from a step's declaration, and runs it.

A task streams its child's log and progress to Prefect, retries what a retry can help, and answers
from the cache when everything that decides its result is equal and the store still holds, unharmed,
what it made.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from prefect import Task, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE, CacheKeyFnPolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff
from pydantic import BaseModel, ConfigDict, ValidationError

from artifacts.store.local import LocalStore
from configs import paths
from configs.errors import LmflowsError
from flows.run.gpu_slots import held
from tasks.machine.gpus import Gpu, GpuBusy, require_free
from tasks.runner.parent import Usage, reap_orphans, run_child
from tasks.runner.step import Context, Result, Step

R = TypeVar("R", bound=Result)
PROGRESS_SECONDS = 2.0  # between two updates of the progress artifact: each is a request to the API
# deploy, too: a server takes a share of what is free while it starts, and two that start at once
# take each other's
GPU_STEPS = {
    "smoke_test",
    "quantize",
    "measure",
    "deploy",
    "compare_runtimes",
    "memory",
    "load_test",
    "keep_layers",
}
# a process that was killed gives its GPU memory back only when the driver has cleaned up behind it
FREED_SECONDS = 30.0


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
    """What Prefect persists of a step: its answer as JSON, its wall time, and the most host and GPU
    memory it used (`tasks.runner.parent.Usage`)."""

    model_config = ConfigDict(frozen=True)

    answer: dict[str, Any]
    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int | None


@dataclass(frozen=True)
class Done(Generic[R]):
    """A finished step: the answer, what it took when it was really run, and whether that was now or
    earlier.

    `kept` is whether the next run can reuse it; then its times stay what they are, too.
    """

    name: str
    result: R
    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int | None
    reused: bool
    kept: bool


@dataclass(frozen=True)
class Run:
    """What the steps of one run share: the workspace, the folder for their requests and logs, and
    the GPUs they may use."""

    folder: Path
    store: LocalStore
    gpus: tuple[Gpu, ...] = ()

    def perform(
        self,
        step: Step[Any, R],
        request: Any,
        *,
        timeout_minutes: float = 30,
        gpu_bytes: int = 0,
        label: str = "",
    ) -> Done[R]:
        """Run a step as a Prefect task, or take its earlier answer.

        Args:
            gpu_bytes: free memory that the step needs on each of its GPUs.
            label: tells the steps of one run apart that do the same to different things.

        Raises:
            LmflowsError: what the step raised, after its retries.
        """
        display, started = DISPLAY.get() or NoDisplay(), time.monotonic()
        job = Job(self, f"{step.name} {label}".strip(), timeout_minutes * 60, gpu_bytes)
        display.started(job.name, step.summary)
        try:
            stored, reused = self._attempt(step, request, job, refresh=False)
            if reused and not self._is_credible(step, stored):
                get_run_logger().warning(
                    "%s: the cached artifact is missing or damaged; it is made again", step.name
                )
                stored, reused = self._attempt(step, request, job, refresh=True)
        except BaseException:
            display.failed(job.name, time.monotonic() - started)
            raise
        display.finished(job.name, time.monotonic() - started, reused)
        return Done(
            name=job.name,
            result=step.result.model_validate(stored.answer),
            seconds=stored.seconds,
            peak_rss_bytes=stored.peak_rss_bytes,
            peak_gpu_bytes=stored.peak_gpu_bytes,
            reused=reused,
            kept=step.cached and request.cacheable,
        )

    def has_done(self, step: Step[Any, Any], request: Any) -> bool:
        """Whether an earlier run has answered this request, as far as the results say."""
        return (results_folder() / step.cache_key(request)).exists()

    def _attempt(
        self, step: Step[Any, R], request: Any, job: Job, *, refresh: bool
    ) -> tuple[Stored, bool]:
        named = prefect_task(step).with_options(refresh_cache=refresh, task_run_name=job.title)
        state = named(request, job, return_state=True)
        return state.result(), state.name == "Cached"

    def _is_credible(self, step: Step[Any, R], stored: Stored) -> bool:
        """Whether a cached answer can be read, and the store still holds all that it names,
        unharmed and in its place."""
        try:
            return all(
                not self.store.verify(artifact.digest)
                and self.store.open(artifact.digest).path.samefile(artifact.path)
                for artifact in step.result.model_validate(stored.answer).artifacts()
            )
        except (LmflowsError, OSError, ValidationError):
            return False


def begin_run(name: str, gpus: Sequence[Gpu]) -> Run:
    """A folder for a run of that name, and nothing alive of runs that are dead."""
    reap_orphans(paths.runs())
    folder = (
        paths.runs()
        / f"{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}-{name}-{str(flow_run.id or '')[:8]}"
    )
    folder.mkdir(parents=True)
    return Run(folder=folder, store=LocalStore(paths.workspace()), gpus=tuple(gpus))


@dataclass(frozen=True)
class Job:
    """One execution of a step within a run: its name there, its limits and needs."""

    run: Run
    name: str
    timeout_s: float
    gpu_bytes: int

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")

    @property
    def folder(self) -> Path:
        return self.run.folder / self.name.replace(" ", "-")


@cache
def prefect_task(step: Step[Any, Any]) -> Task[[Any, Job], Stored]:
    """The Prefect task of a step."""

    def body(request: Any, job: Job) -> Stored:
        return _execute(step, request, job)

    def key(_context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
        return step.cache_key(parameters["request"]) if parameters["request"].cacheable else None

    return task(
        name=step.name.replace("_", " "),
        description=step.summary,
        retries=step.retries,
        retry_delay_seconds=exponential_backoff(backoff_factor=2),
        retry_jitter_factor=0.5,
        retry_condition_fn=can_help,
        result_storage=results_folder(),
        cache_policy=CacheKeyFnPolicy(cache_key_fn=key) if step.cached else NO_CACHE,
        persist_result=step.cached,
        result_serializer="json",
        log_prints=False,
    )(body)


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


def _execute(step: Step[Any, Any], request: Any, job: Job) -> Stored:
    listener, run = _Listener(job), job.run
    gpus = run.gpus if step.name in GPU_STEPS else ()
    with held(gpus, waiting=listener.say):
        _wait_for_memory(gpus, job, listener)
        if step.child:
            result, usage = run_child(
                step,
                request,
                folder=job.folder,
                store=run.store,
                timeout_s=job.timeout_s,
                listener=listener,
                gpus=gpus,
            )
        else:
            started = time.monotonic()
            result = step(request, _InProcess(run.store, listener))
            usage = Usage(
                seconds=round(time.monotonic() - started, 3), peak_rss_bytes=0, peak_gpu_bytes=None
            )
    return Stored(
        answer=result.model_dump(mode="json"),
        seconds=usage.seconds,
        peak_rss_bytes=usage.peak_rss_bytes,
        peak_gpu_bytes=usage.peak_gpu_bytes,
    )


def _wait_for_memory(gpus: tuple[Gpu, ...], job: Job, listener: _Listener) -> None:
    """Ask NVML whether the GPUs have the memory that the step needs; give those who have just left
    a moment."""
    deadline = time.monotonic() + FREED_SECONDS
    while True:
        try:
            return require_free(gpus, job.gpu_bytes, what=f"step {job.title}")
        except GpuBusy as error:
            if time.monotonic() > deadline:
                raise
            listener.say(f"waiting for GPU memory: {error.message}")
            time.sleep(FREED_SECONDS / 6)


class _InProcess(Context):
    """The context of a step that runs in the flow's own process."""

    def __init__(self, store: LocalStore, listener: _Listener) -> None:
        super().__init__(store)
        self._listener = listener

    def progress(self, fraction: float, text: str) -> None:
        self._listener.progress(fraction, text)

    def log(self, text: str) -> None:
        """A step in this process has few words, and they are meant for people."""
        self._listener.say(text)


class _Listener:
    """Hands a step's log to Prefect's logger, and its progress to the terminal and to a progress
    artifact."""

    def __init__(self, job: Job) -> None:
        self._job, self._logger, self._display = job, get_run_logger(), DISPLAY.get() or NoDisplay()
        self._artifact: Any = None
        self._updated = 0.0

    def line(self, text: str) -> None:
        self._logger.info(text)

    def say(self, text: str) -> None:
        """To Prefect and to the terminal."""
        self.line(text)
        self._display.note(text)

    def progress(self, fraction: float, text: str) -> None:
        self._display.progress(self._job.name, fraction, text)
        if time.monotonic() - self._updated < PROGRESS_SECONDS:
            return
        self._updated = time.monotonic()
        if self._artifact is None:
            self._artifact = create_progress_artifact(
                progress=100 * fraction, description=self._job.title
            )
        else:
            update_progress_artifact(artifact_id=self._artifact, progress=100 * fraction)


def artifact_key(text: str) -> str:
    """A Prefect artifact key (lower case letters, digits and dashes) from any text."""
    return "-".join(
        "".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split()
    )
