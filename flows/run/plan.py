"""The plan of a run: the pipeline that its config describes, and the place where its results go.

Everything is read and checked here, before any step starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.manifest import ModelArtifact
from configs import paths
from configs.location import S3, Location
from configs.policy import Policy, load_policy
from configs.reader import load
from configs.schema import Pipeline
from tasks.capacity import CapacityRequest, MachineRequest
from tasks.download import DownloadResult
from tasks.machine.gpus import Gpu, choose_visible
from tasks.measure import ItemsFile, items_files
from tasks.preflight import PreflightRequest, PreflightResult
from tasks.serving import endpoints, supervisor
from tasks.smoke_test import SmokeTestRequest


@dataclass(frozen=True)
class Plan:
    """What a run does, and where its results go.

    Attributes:
        items: the pipeline's files of task items, as they are now.
        gpus: those that the run may use.
        store: where artifacts are uploaded to; `policy` is what holds there.
    """

    pipeline: Pipeline
    items: tuple[ItemsFile, ...]
    gpus: tuple[Gpu, ...]
    store: Location
    policy: Policy

    @property
    def named_store(self) -> Location | None:
        """The store if commands mean another by themselves, so that it has to be named."""
        return None if self.store == self.policy.store_for(None) else self.store

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders on this machine that the run writes to."""
        if self.store.startswith(S3):
            return (paths.workspace(),)
        return paths.workspace(), Path(self.store)

    def machine_request(self) -> MachineRequest:
        """What is asked of this machine before the model is there."""
        return MachineRequest(
            quantize=self.pipeline.quantize,
            engine=self.pipeline.engine,
            deploy=self.pipeline.deploy,
            gpus=self.pipeline.gpus,
            folders=self.folders,
            store=self.store,
            policy=self.policy,
            port_is_ours=port_is_ours(self.pipeline),
        )

    def preflight_request(
        self, model: ModelArtifact, texts: ModelArtifact, source: DownloadResult
    ) -> PreflightRequest:
        """What is asked of the model before any long work."""
        return PreflightRequest(
            model=model,
            texts=texts,
            quantize=self.pipeline.quantize,
            engine=self.pipeline.engine,
            served=self.pipeline.served_variant,
            deployed=self.pipeline.deploy is not None,
            untrusted_code=source.untrusted_code,
        )

    def smoke_test_request(self, model: ModelArtifact) -> SmokeTestRequest:
        """What the fp16 model is asked to say."""
        return SmokeTestRequest(
            model=model,
            config=self.pipeline.smoke_test,
        )

    def capacity_request(self, model: PreflightResult, *, reused: bool) -> CapacityRequest:
        """What this model and recipe need of the machine. `reused`: it is quantized already."""
        return CapacityRequest(
            model=model,
            quantize=self.pipeline.quantize,
            evaluate=self.pipeline.evaluate,
            engine=self.pipeline.engine,
            gpus=self.pipeline.gpus,
            folders=self.folders,
            reused=reused,
        )


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
    return Plan(pipeline, items, gpus, store, policy)


def find_config(config: str) -> Path:
    """The file, relative to the current folder or, for a worker that runs elsewhere, to the
    checkout."""
    path = Path(config)
    return path if path.exists() else paths.PROJECT / path


def port_is_ours(pipeline: Pipeline) -> bool:
    """Whether the wanted port is held by the endpoint that the run will replace."""
    known = endpoints.read(pipeline.name)
    if known is None or pipeline.deploy is None:
        return False
    if known.options.port != pipeline.deploy.port:
        return False
    state, _ = supervisor.state(known)
    return state in ("RUNNING", "STARTING")
