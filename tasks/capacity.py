"""What a run needs, and whether this machine has it: disk, host memory, GPU memory, the port. Asked on every run."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field

from configs.errors import PreflightError
from configs.schema import DeployTransformers, DeployTurbomind, Pipeline, Quantize
from tasks.preflight import PreflightResult
from tasks.step import Context, Request, Result, step

LIBRARIES_RSS = 1_300_000_000  # bytes that torch with CUDA, transformers and lmdeploy take before any weight
GPU_CONTEXT = 600_000_000  # bytes of a CUDA context with its kernels
CPU_FLOPS, GPU_FLOPS = 5e10, 1e14  # sustained, of a small machine; only for the time class


class CapacityRequest(Request):
    """`held` is the endpoint whose own server may hold the port."""

    model: PreflightResult
    quantize: Quantize
    documents_tokens: int
    deploy: Annotated[DeployTransformers | DeployTurbomind, Field(discriminator="engine")] | None
    folders: tuple[Path, ...]
    port_is_ours: bool = False


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
    context.log(f"needs {gb(needs.disk_bytes)} of disk, {gb(needs.host_bytes)} of memory, {gb(needs.gpu_bytes)} of GPU memory, "
                f"{needs.time_class}")
    found = [*_disk(needs, request.folders), *_memory(needs), *_gpu(needs, request.deploy), *_port(request)]
    if found:
        raise PreflightError("\n".join(f"{number}. {text}" for number, text in enumerate(found, 1)),
                             where=f"{len(found)} problem{'s' if len(found) > 1 else ''} before any work was started")
    return needs


def estimate(request: CapacityRequest) -> CapacityResult:
    """Peaks over the steps, from the model's sizes and the recipe. Rough upper figures, not promises."""
    model, quantize = request.model, request.quantize
    cuda = bool(_gpu_free())
    tokens = quantize.samples * quantize.sequence_length
    activations = 3 * 2 * tokens * model.hidden_size  # LMDeploy holds all rows at once, fp16, twice and a half
    weights16 = 2 * model.parameters
    logits = 4 * 1024 * 4 * 3 * model.vocabulary  # a batch of 4 documents of 1024 tokens, float32, both models and a copy
    on_host = max(2 * weights16 + (0 if cuda else activations), 2 * 4 * model.parameters + (0 if cuda else logits))
    gpu = max(activations + weights16 // 8, 2 * 4 * model.parameters + logits) + GPU_CONTEXT if cuda else 0
    search = 20 if quantize.search_scale else 1
    work = 2 * model.parameters * (tokens * (1 + search) + 2 * request.documents_tokens)
    seconds = work / (GPU_FLOPS if cuda else CPU_FLOPS) + 60
    time_class = "under 10 minutes" if seconds < 600 else "under an hour" if seconds < 3600 else f"about {seconds / 3600:.0f} hours"
    return CapacityResult(disk_bytes=int(1.1 * (2 * model.candidate_bytes + model.parent_bytes)) + 50_000_000,
                          host_bytes=LIBRARIES_RSS + on_host, gpu_bytes=gpu, time_class=time_class)


def documents_tokens(pipeline: Pipeline) -> int:
    return pipeline.evaluate.documents * pipeline.evaluate.max_tokens_per_document


def gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _disk(needs: CapacityResult, folders: tuple[Path, ...]) -> Iterator[str]:
    for folder in folders:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(existing, os.W_OK):
            yield f"{folder} cannot be written -> choose another folder (LMFLOWS_HOME, upload.store)"
        elif (free := shutil.disk_usage(existing).free) < needs.disk_bytes:
            yield (f"{folder} has {gb(free)} of free disk, the run needs {gb(needs.disk_bytes)} -> free some space, "
                   "or set LMFLOWS_HOME (or upload.store) to a larger disk")


def _memory(needs: CapacityResult) -> Iterator[str]:
    if (free := psutil.virtual_memory().available) < needs.host_bytes:
        yield (f"{gb(free)} of memory are available, the run needs {gb(needs.host_bytes)} -> stop something, use a larger machine, "
               "or lower quantize.samples and quantize.sequence_length")


def _gpu(needs: CapacityResult, deploy: DeployTransformers | DeployTurbomind | None) -> Iterator[str]:
    free = _gpu_free()
    if free and max(free) < needs.gpu_bytes:
        yield (f"no GPU has {gb(needs.gpu_bytes)} free (the most is {gb(max(free))}) -> stop what uses it (nvidia-smi), "
               "or lower quantize.samples and quantize.sequence_length")
    if isinstance(deploy, DeployTurbomind) and len(free) < deploy.tp:
        yield f"deploy.tp {deploy.tp} needs as many GPUs, {len(free)} are here -> lower it"


def _gpu_free() -> list[int]:
    """Free bytes of each GPU by NVML; empty without one."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) for handle in handles]
    finally:
        pynvml.nvmlShutdown()


def _port(request: CapacityRequest) -> Iterator[str]:
    deploy = request.deploy
    if deploy is not None and not request.port_is_ours and (problem := port_problem(deploy.host, deploy.port)):
        yield f"{problem} -> set deploy.port to a free one, or stop what uses it (`ss -ltnp 'sport = :{deploy.port}'` names it)"


def port_problem(host: str, port: int) -> str | None:
    """Why a server could not listen on host and port, or None."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        return f"deploy.host {host!r} is no address: {error.strerror}"
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        return f"port {port} on {host} is taken" if taken else f"cannot listen on {host}:{port}: {error.strerror}"
    return None
