"""A step as a Prefect task: one place that makes the task from a step's declaration, and runs it.

A task streams its child's log and progress to Prefect, retries what a retry can help, and is cached
by what decides its result. Knows nothing of runs: a `Job` has all that an execution needs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Task, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE, CacheKeyFnPolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.tasks import exponential_backoff
from pydantic import BaseModel, ConfigDict

from artifacts.store.local import LocalStore
from configs import paths
from configs.callbacks import Log
from configs.errors import GpuBusy, LmflowsError
from flows.run.display import display, note
from flows.run.gpu_slots import held
from tasks.machine.gpus import Gpu, require_free
from tasks.runner.parent import Placement, Usage, run_child
from tasks.runner.step import Context, In, Out, Request, Step

PROGRESS_SECONDS = 2.0  # between two updates of the progress artifact: each is a request to the API
# a process that was killed gives its GPU memory back only when the driver has cleaned up behind it
FREED_SECONDS = 30.0


class Stored(BaseModel):
    """What Prefect persists of a step: its answer as JSON, its wall time, and the most host and GPU
    memory it used (`tasks.runner.parent.Usage`)."""

    model_config = ConfigDict(frozen=True)

    answer: dict[str, Any]
    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int | None


@dataclass(frozen=True)
class Job:
    """One execution of a step: its name within the run, its place, its limits and needs.

    Attributes:
        folder: for the step's request, log and answer.
        gpus: those that the step computes on; none for a step that is not declared so.
        gpu_bytes: free memory that it needs on each of them.
    """

    name: str
    folder: Path
    store: LocalStore
    timeout_s: float
    gpus: tuple[Gpu, ...]
    gpu_bytes: int

    @property
    def title(self) -> str:
        return title(self.name)


def title(name: str) -> str:
    """A step's name for people."""
    return name.replace("_", " ")


@cache
def prefect_task(step: Step[Any, Any]) -> Task[[Any, Job], Stored]:
    """The Prefect task of a step."""

    def body(request: Any, job: Job) -> Stored:
        return execute(step, request, job)

    def key(_context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
        request: Request = parameters["request"]
        return step.cache_key(request) if request.cacheable else None

    return task(
        name=title(step.name),
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


def execute(step: Step[In, Out], request: In, job: Job) -> Stored:
    """Run a step with its GPUs in hand, in a child process if it is declared so."""
    listener = _Listener(job)
    with held(job.gpus, log=note):
        wait_for_memory(job, log=note)
        if step.child:
            result, usage = run_child(
                step,
                request,
                Placement(job.folder, job.store, job.timeout_s, job.gpus),
                progress=listener.progress,
                log=listener.log,
            )
        else:
            started = time.monotonic()
            result = step(request, _FlowContext(job.store, listener))
            seconds = round(time.monotonic() - started, 3)
            usage = Usage(seconds=seconds, peak_rss_bytes=0, peak_gpu_bytes=None)
    return Stored(
        answer=result.model_dump(mode="json"),
        seconds=usage.seconds,
        peak_rss_bytes=usage.peak_rss_bytes,
        peak_gpu_bytes=usage.peak_gpu_bytes,
    )


def wait_for_memory(job: Job, log: Log) -> None:
    """Ask NVML whether the GPUs have the memory that the step needs; give those who have just left
    a moment.

    Raises:
        GpuBusy: they do not have it after FREED_SECONDS.
    """
    deadline = time.monotonic() + FREED_SECONDS
    while True:
        try:
            return require_free(job.gpus, job.gpu_bytes, what=f"step {job.title}")
        except GpuBusy as error:
            if time.monotonic() > deadline:
                raise
            log(f"waiting for GPU memory: {error.message}")
            time.sleep(FREED_SECONDS / 6)


class _FlowContext(Context):
    """The context of a step that runs in the flow's own process."""

    def __init__(self, store: LocalStore, listener: _Listener) -> None:
        super().__init__(store)
        self._listener = listener

    def progress(self, fraction: float, text: str) -> None:
        self._listener.progress(fraction, text)

    def log(self, text: str) -> None:
        """A step in this process has few words, and they are meant for people."""
        note(text)


class _Listener:
    """Hands a step's log to Prefect's logger, and its progress to the display and to a progress
    artifact."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._logger = get_run_logger()
        self._display = display()
        self._artifact: UUID | None = None
        self._updated = 0.0

    def log(self, text: str) -> None:
        self._logger.info(text)

    def progress(self, fraction: float, text: str) -> None:
        self._display.progress(self._job.name, fraction, text)
        if time.monotonic() - self._updated < PROGRESS_SECONDS:
            return
        self._updated = time.monotonic()
        percent = 100 * fraction
        if self._artifact is None:
            created = create_progress_artifact(progress=percent, description=self._job.title)
            self._artifact = created if isinstance(created, UUID) else None
        else:
            update_progress_artifact(artifact_id=self._artifact, progress=percent)
