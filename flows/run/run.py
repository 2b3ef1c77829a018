"""A run: it performs steps, and remembers what they were, on which GPUs and with how much memory.

`run(step, request)` is the one way for a flow to a step's answer. An earlier answer is believed
only if the store still holds, unharmed, what it names.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.runtime import flow_run
from pydantic import ValidationError

from artifacts.records.outcomes import StepTime
from artifacts.store.local import LocalStore
from configs import paths
from configs.errors import LmflowsError
from flows.run.display import display
from flows.run.task import Job, Stored, prefect_task, results_folder
from tasks.machine.gpus import Gpu
from tasks.runner.parent import reap_orphans
from tasks.runner.step import In, Out, Step


@dataclass(frozen=True)
class Done:
    """A finished step of a run.

    Attributes:
        time: what it took when it was really run, now or earlier.
        reused: whether that was earlier.
        kept: whether the next run can reuse it; then its time stays what it is, too.
    """

    time: StepTime
    reused: bool
    kept: bool


class Run:
    """What the steps of one run share.

    Attributes:
        folder: for the steps' requests and logs.
        store: the workspace.
        gpus: those that the run may use.
        gpu_bytes: free memory that a step on GPUs needs on each of them.
        finished: the steps so far.
    """

    def __init__(self, folder: Path, store: LocalStore, gpus: Sequence[Gpu] = ()) -> None:
        self.folder = folder
        self.store = store
        self.gpus = tuple(gpus)
        self.gpu_bytes = 0
        self.finished: list[Done] = []

    def __call__(self, step: Step[In, Out], request: In, *, label: str = "") -> Out:
        """Run a step as a Prefect task, or take its earlier answer.

        Args:
            label: tells the steps of one run apart that do the same to different things.

        Raises:
            LmflowsError: what the step raised, after its retries.
        """
        job = self._job(step, request, label)
        shown = display()
        started = time.monotonic()
        shown.started(job.name, step.summary)
        try:
            stored, reused = self._answer(step, request, job)
        except BaseException:
            shown.failed(job.name, time.monotonic() - started)
            raise
        shown.finished(job.name, time.monotonic() - started, reused)
        took = StepTime(
            name=job.name,
            seconds=stored.seconds,
            peak_rss_bytes=stored.peak_rss_bytes,
            peak_gpu_bytes=stored.peak_gpu_bytes,
        )
        self.finished.append(Done(took, reused, kept=step.cached and request.cacheable))
        return step.result.model_validate(stored.answer)

    def has_done(self, step: Step[In, Out], request: In) -> bool:
        """Whether an earlier run has answered this request, as far as the results say."""
        return (results_folder() / step.cache_key(request)).exists()

    @property
    def reused(self) -> tuple[str, ...]:
        """The names of the steps whose earlier answer was taken."""
        return tuple(done.time.name for done in self.finished if done.reused)

    @property
    def times(self) -> tuple[StepTime, ...]:
        """What the steps took whose answer is kept."""
        return tuple(done.time for done in self.finished if done.kept)

    def _job(self, step: Step[In, Out], request: In, label: str) -> Job:
        name = f"{step.name} {label}".strip()
        return Job(
            name=name,
            folder=self.folder / name.replace(" ", "-"),
            store=self.store,
            timeout_s=60 * request.limit_minutes,
            gpus=self.gpus if step.gpu else (),
            gpu_bytes=0 if request.frees_gpu_memory else self.gpu_bytes,
        )

    def _answer(self, step: Step[In, Out], request: In, job: Job) -> tuple[Stored, bool]:
        """The step's answer, and whether it is an earlier one."""
        stored, reused = _attempt(step, request, job, refresh=False)
        if reused and not self._is_credible(step, stored):
            get_run_logger().warning(
                "%s: the cached artifact is missing or damaged; it is made again", step.name
            )
            return _attempt(step, request, job, refresh=True)
        return stored, reused

    def _is_credible(self, step: Step[In, Out], stored: Stored) -> bool:
        """Whether a cached answer can be read, and the store still holds all that it names,
        unharmed and in its place."""
        try:
            answer = step.result.model_validate(stored.answer)
            return all(
                not self.store.verify(artifact.digest)
                and self.store.open(artifact.digest).path.samefile(artifact.path)
                for artifact in answer.artifacts()
            )
        except (LmflowsError, OSError, ValidationError):
            return False


def begin_run(name: str, gpus: Sequence[Gpu] = ()) -> Run:
    """A folder for a run of that name, and nothing alive of runs that are dead."""
    reap_orphans(paths.runs())
    began = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = paths.runs() / f"{began}-{name}-{str(flow_run.id or '')[:8]}"
    folder.mkdir(parents=True)
    return Run(folder, LocalStore(paths.workspace()), gpus)


def _attempt(step: Step[In, Out], request: In, job: Job, *, refresh: bool) -> tuple[Stored, bool]:
    named: Any = prefect_task(step).with_options(refresh_cache=refresh, task_run_name=job.title)
    state = named(request, job, return_state=True)
    return state.result(), state.name == "Cached"
