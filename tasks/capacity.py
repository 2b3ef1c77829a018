"""Whether this machine can do it, asked on every run.

`machine` comes first of all and asks what needs no model: the port, the GPUs, the folders, the
store, the engine's runtime. `capacity` compares what this model and recipe need of disk, host
memory and GPU memory with what there is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from artifacts.records.model import ModelSummary
from artifacts.registry.keys import require_keys
from artifacts.store.open import open_store
from configs.deployment import Deploy
from configs.errors import ConfigError, PreflightError, require_ready
from configs.policy import Destination
from configs.schema import Pipeline
from configs.units import gb
from tasks.machine.gpus import choose, free_bytes
from tasks.machine.ports import port_problem
from tasks.runner import runtimes
from tasks.runner.step import Context, Request, Result, step
from tasks.serving import endpoints, supervisor
from tasks.serving.endpoints import api_keys

# bytes that torch with CUDA, transformers and lmdeploy take before any weight
LIBRARIES_RSS = 1_300_000_000
SMALL_BYTES = 50_000_000  # logs, reports, Prefect's database
GPU_CONTEXT = 600_000_000  # bytes of a CUDA context with its kernels
CPU_FLOPS, GPU_FLOPS = 5e10, 1e14  # sustained, of a small machine; only for the time class


class MachineRequest(Request):
    """What can be asked before the model is there."""

    pipeline: Pipeline
    destination: Destination


class MachineResult(Result):
    gpus: int


@step(child=False, cached=False)
def machine(request: MachineRequest, context: Context) -> MachineResult:
    """Ask this machine for what needs no model: folders, GPUs, the port, API keys, the store, the
    engine's runtime."""
    gpus = free_bytes()
    require_ready(
        [
            *_writable(request.destination.folders),
            *_gpus(len(gpus), request.pipeline),
            *_port(request.pipeline),
            *_keys(request.pipeline.deploy),
        ]
    )
    require_keys(request.destination.policy)
    open_store(
        request.destination.store
    ).objects.probe()  # a bucket that cannot be promoted in shows here, too
    # an unknown one shows here, and not after the quantization
    runtimes.prepare(request.pipeline.engine.runtime, log=context.log)
    return MachineResult(gpus=len(gpus))


class CapacityRequest(Request):
    """`reused`: the quantization is there already, so what the machine has left is no obstacle."""

    pipeline: Pipeline
    destination: Destination
    model: ModelSummary
    reused: bool = False


class CapacityResult(Result):
    """What the run needs at its peak, in bytes, and how long it will take, roughly."""

    disk_bytes: int
    host_bytes: int
    gpu_bytes: int
    time_class: str


@step(child=False, cached=False)
def capacity(request: CapacityRequest, context: Context) -> CapacityResult:
    """Compare what the run needs with what this machine has."""
    needs = estimate(request)
    context.log(
        f"needs {gb(needs.disk_bytes)} of disk, {gb(needs.host_bytes)} of memory,"
        f" {gb(needs.gpu_bytes)} of GPU memory, {needs.time_class}"
    )
    if not request.reused:
        require_ready(
            [
                *_disk(needs, request.destination.folders),
                *_memory(needs),
                *_gpu_memory(needs, request),
            ]
        )
    return needs


def estimate(request: CapacityRequest) -> CapacityResult:
    """Peaks over the steps, from the model's sizes, the recipe and the evaluation. Rough upper
    figures, not promises."""
    model = request.model
    cuda = bool(free_bytes())
    tokens = request.pipeline.quantize.samples * request.pipeline.quantize.sequence_length
    # LMDeploy holds all rows at once, fp16, twice and a half
    activations = 3 * 2 * tokens * model.hidden_size
    weights = 2 * model.parameters  # in 16 bit
    scoring = request.pipeline.engine.weight_bytes * model.parameters + _logits(request)
    if cuda:
        on_host = 2 * weights
        on_gpu = max(activations + weights // 8, scoring) + GPU_CONTEXT
    else:
        on_host = max(2 * weights + activations, scoring)
        on_gpu = 0
    return CapacityResult(
        disk_bytes=int(1.1 * (2 * model.candidate_bytes + model.parent_bytes)) + SMALL_BYTES,
        host_bytes=LIBRARIES_RSS + on_host,
        gpu_bytes=on_gpu,
        time_class=_time_class(request, GPU_FLOPS if cuda else CPU_FLOPS),
    )


def _logits(request: CapacityRequest) -> int:
    """Bytes of the logits of a batch of documents: float32, and a copy."""
    config = request.pipeline.evaluate
    return config.batch_size * config.max_tokens_per_document * 4 * 2 * request.model.vocabulary


def _time_class(request: CapacityRequest, flops: float) -> str:
    """How long it will take in words, at so many operations a second."""
    search = 20 if request.pipeline.quantize.search_scale else 1
    calibrated = (
        request.pipeline.quantize.samples * request.pipeline.quantize.sequence_length * (1 + search)
    )
    scored = (
        2 * request.pipeline.evaluate.documents * request.pipeline.evaluate.max_tokens_per_document
    )
    seconds = 2 * request.model.parameters * (calibrated + scored) / flops + 60
    if seconds < 600:
        return "under 10 minutes"
    if seconds < 3600:
        return "under an hour"
    return f"about {seconds / 3600:.0f} hours"


def _writable(folders: tuple[Path, ...]) -> Iterator[str]:
    for folder in folders:
        existing = _existing(folder)
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            yield (
                f"{folder} cannot be written -> choose another folder (LMFLOWS_HOME, upload.store)"
            )
        elif shutil.disk_usage(existing).free < SMALL_BYTES:
            yield (
                f"{folder} is on a full disk -> free some space, or set LMFLOWS_HOME (or"
                " upload.store) to a larger disk"
            )


def _disk(needs: CapacityResult, folders: tuple[Path, ...]) -> Iterator[str]:
    for folder in folders:
        if (free := shutil.disk_usage(_existing(folder)).free) < needs.disk_bytes:
            yield (
                f"{folder} has {gb(free)} of free disk, the run needs {gb(needs.disk_bytes)} ->"
                " free some space, or set LMFLOWS_HOME (or upload.store) to a larger disk"
            )


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _memory(needs: CapacityResult) -> Iterator[str]:
    if (free := psutil.virtual_memory().available) < needs.host_bytes:
        yield (
            f"{gb(free)} of memory are available, the run needs {gb(needs.host_bytes)} -> stop"
            " something, use a larger machine, or lower quantize.samples and"
            " quantize.sequence_length"
        )


def _gpu_memory(needs: CapacityResult, request: CapacityRequest) -> Iterator[str]:
    for gpu in choose(request.pipeline.gpus, request.pipeline.engine.tp):
        if gpu.free_bytes < needs.gpu_bytes:
            yield (
                f"{gpu} has {gb(gpu.free_bytes)} free, the run needs {gb(needs.gpu_bytes)} -> stop"
                " what uses it (nvidia-smi, `lmflows status`), let the run use others (gpus), or"
                " lower quantize.samples and quantize.sequence_length"
            )


def _gpus(count: int, pipeline: Pipeline) -> Iterator[str]:
    if pipeline.quantize.device == "cuda" and not count:
        yield (
            "quantize.device cuda, and there is no CUDA GPU here -> run on a GPU worker, or set"
            " quantize.device: auto"
        )
    engine = pipeline.engine
    if engine.needs_gpu and count < engine.tp:
        yield (
            f"engine {engine.name} with tp {engine.tp} needs as many CUDA GPUs,"
            f" {count} are here -> run on a GPU worker, lower engine.tp, or set engine.name:"
            " transformers"
        )
    try:
        choose(pipeline.gpus, engine.tp)
    except PreflightError as error:
        yield f"{error.message} -> {error.hint}"


def _keys(deploy: Deploy | None) -> Iterator[str]:
    try:
        api_keys(deploy.api_keys_env if deploy else None)
    except ConfigError as error:
        yield f"{error.where}: {error.message} -> {error.hint}"


def _port(pipeline: Pipeline) -> Iterator[str]:
    deploy = pipeline.deploy
    if deploy is None or _is_ours(deploy.port, pipeline.name):
        return
    if problem := port_problem(deploy.host, deploy.port):
        yield (
            f"{problem} -> set deploy.port to a free one, or stop what uses it (`ss -ltnp 'sport ="
            f" :{deploy.port}'` names it)"
        )


def _is_ours(port: int, name: str) -> bool:
    """Whether a port is held by the endpoint that the run will replace."""
    known = endpoints.read(name)
    if known is None or known.options.port != port:
        return False
    state, _ = supervisor.state(known)
    return state in ("RUNNING", "STARTING")
