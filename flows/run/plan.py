"""The plan of a run: the pipeline that its config describes, and the place where its results go.

Everything is read and checked here, before any step starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import paths
from configs.policy import Destination, load_policy
from configs.reader import load
from configs.schema import Pipeline
from tasks.machine.gpus import Gpu, choose_visible
from tasks.measure import ItemsFile, items_files


@dataclass(frozen=True)
class Plan:
    """What a run does, with what, and where its results go.

    Attributes:
        items: the pipeline's files of task items, as they are now.
        gpus: those that the run may use.
    """

    pipeline: Pipeline
    items: tuple[ItemsFile, ...]
    gpus: tuple[Gpu, ...]
    destination: Destination


def make_plan(config: str, overrides: dict[str, Any] | None) -> Plan:
    """Read a pipeline's config and this machine's policy.

    Raises:
        LmflowsError: one of them, or a file that they name, has a mistake.
    """
    path = find_config(config)
    pipeline = load(path, overrides)
    items = items_files(pipeline.evaluate.tasks)
    gpus = choose_visible(pipeline.gpus, pipeline.engine.tp)
    policy = load_policy()
    store = policy.store_for(pipeline.upload.store)
    return Plan(pipeline, items, gpus, Destination(store=store, policy=policy))


def find_config(config: str) -> Path:
    """The file, relative to the current folder or, for a worker that runs elsewhere, to the
    checkout."""
    path = Path(config)
    return path if path.exists() else paths.PROJECT / path
