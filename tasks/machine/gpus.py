"""What GPUs this machine has, by NVML: without torch, so that the flow's own process and a cache
key can ask.

NVML counts GPUs in PCI order, as nvidia-smi does; CUDA counts the fastest first unless
CUDA_DEVICE_ORDER=PCI_BUS_ID. On a machine with different models the same number can so mean two
GPUs: whoever hands GPUs to a child process sets CUDA_VISIBLE_DEVICES to their UUIDs, which mean one
thing to both. Sizes are bytes, memory is the device's: a container often cannot see what each
process holds. Knows nothing of Prefect.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import pynvml

from configs.errors import GpuBusy, PreflightError
from configs.units import gb

# the flow's CUDA_VISIBLE_DEVICES, in a child to which CUDA shows no GPU
FLOWS_MASK = "LMFLOWS_VISIBLE_GPUS"
ALL = "all"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML told when it was asked.

    Attributes:
        index: NVML's, and so nvidia-smi's.
        architecture: the compute capability as compilers name it, for example sm_90.
    """

    index: int
    uuid: str
    name: str
    architecture: str
    total_bytes: int
    free_bytes: int
    driver: str

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})"


def visible() -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves visible, in its order; empty without one, or
    without a working driver. In the child of a step that computes on none, those of its flow.

    Read as CUDA does: numbers, UUIDs and beginnings of UUIDs; an entry that names no GPU, or more
    than one, hides itself and all that follow; a GPU that is named twice hides all. Numbers are
    taken as NVML's. A MIG slice is no GPU here.
    """
    try:
        with _nvml():
            return _unmasked(_all(), _mask())
    except pynvml.NVMLError:
        return []


def environment(gpus: Sequence[Gpu]) -> dict[str, str]:
    """What the child of a step is given: CUDA sees the GPUs that the step computes on, and no
    others; one that computes on none can still ask about those of its flow (`visible`)."""
    given = ",".join(gpu.uuid for gpu in gpus)
    mask = given if gpus else _mask()
    return {"CUDA_VISIBLE_DEVICES": given, FLOWS_MASK: ALL if mask is None else mask}


def _mask() -> str | None:
    """What hides GPUs from this process, in the form of CUDA_VISIBLE_DEVICES; None: nothing."""
    mask = os.environ.get(FLOWS_MASK, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return None if mask == ALL else mask


def free_bytes() -> list[int]:
    """Free memory of each visible GPU, in bytes; empty without one."""
    return [gpu.free_bytes for gpu in visible()]


def used_bytes() -> int:
    """Memory in use on all visible GPUs together, in bytes, whoever uses it; 0 without one."""
    return sum(gpu.total_bytes - gpu.free_bytes for gpu in visible())


def cuda_is_visible() -> bool:
    """Whether a step of this run will find a CUDA GPU: what `device: auto` comes down to."""
    return bool(visible())


def choose(allowed: tuple[int, ...] | None, count: int) -> list[Gpu]:
    """The `count` GPUs with the most free memory.

    Args:
        allowed: the GPUs that a run may use, as positions from 0 among the visible ones; None for
            all of them.
        count: how many; with 0 there is nothing to choose, and nobody is asked.

    Returns:
        The freest first, of equals the first position; empty if count is 0, or if no GPU is visible
        and none was named.

    Raises:
        PreflightError: a named GPU is not there, or there are too few.
    """
    if count == 0:
        return []
    gpus = visible()
    if not gpus and allowed is None:
        return []
    named = ", ".join(f"{position}: {gpu.name}" for position, gpu in enumerate(gpus))
    there = named or f"none ({_why_none()})"
    missing = sorted(set(allowed or ()) - set(range(len(gpus))))
    if missing:
        raise PreflightError(
            f"GPU {', '.join(map(str, missing))} is not here; visible: {there}",
            where="gpus",
            hint=(
                "name GPUs by their positions from 0 among those that CUDA_VISIBLE_DEVICES leaves"
                " visible (`nvidia-smi -L`)"
            ),
        )
    candidates = gpus if allowed is None else [gpus[position] for position in sorted(set(allowed))]
    if len(candidates) < count:
        raise PreflightError(
            f"{count} GPUs are needed, the run may use {len(candidates)}; visible: {there}",
            where="gpus",
            hint="allow more GPUs, lower engine.tp, or run on a larger worker",
        )
    return sorted(candidates, key=lambda gpu: -gpu.free_bytes)[:count]


def choose_visible(allowed: tuple[int, ...] | None, count: int) -> tuple[Gpu, ...]:
    """Like `choose`; none on a machine without a GPU: an engine that needs one says so itself."""
    return tuple(choose(allowed, count if cuda_is_visible() else 0))


def require_free(gpus: Sequence[Gpu], bytes_each: int, *, what: str) -> None:
    """Ask NVML again, now, whether each of the GPUs has that much free memory.

    Args:
        bytes_each: what is needed on each of them.
        what: who needs it: the step, for the error.

    Raises:
        GpuBusy: one has less; names who holds it where NVML tells.
        PreflightError: one is gone.
    """
    if not gpus:
        return
    try:
        with _nvml():
            problems = [_shortage(gpu, bytes_each) for gpu in gpus]
    except pynvml.NVMLError as error:
        raise PreflightError(
            f"NVML no longer tells of {', '.join(map(str, gpus))}: {error}",
            where=what,
            hint="look at `nvidia-smi` and `dmesg`; a GPU that was lost comes back with a reboot",
        ) from None
    if any(problems):
        raise GpuBusy(
            "; ".join(filter(None, problems)),
            where=what,
            hint=(
                "stop what uses it (`nvidia-smi` lists it), wait until it ends, or let the run use"
                " another GPU"
            ),
        )


def description(gpu: Gpu) -> dict[str, str]:
    """What evidence and reports say of the GPU: the same for two GPUs of one kind under one
    driver."""
    return {
        "name": gpu.name,
        "driver": gpu.driver,
        "architecture": gpu.architecture,
        "memory": gb(gpu.total_bytes),
    }


@contextmanager
def _nvml() -> Iterator[None]:
    """NVML between its init and shutdown, which it counts, so that sessions may overlap."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _all() -> list[Gpu]:
    """Every GPU of the machine that tells of its memory; one that has fallen off the bus is left
    out."""
    driver = str(_asked(pynvml.nvmlSystemGetDriverVersion))
    gpus = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        with suppress(pynvml.NVMLError):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            gpus.append(
                Gpu(
                    index=index,
                    uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
                    name=str(_asked(pynvml.nvmlDeviceGetName, handle)),
                    architecture=_architecture(handle),
                    total_bytes=int(memory.total),
                    free_bytes=int(memory.free),
                    driver=driver,
                )
            )
    return gpus


def _architecture(handle: Any) -> str:
    capability = _asked(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    return UNKNOWN if capability == UNKNOWN else f"sm_{capability[0]}{capability[1]}"


def _asked(function: Any, *arguments: Any) -> Any:
    """NVML's answer, or UNKNOWN where the board or the driver does not support the question."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return UNKNOWN


def _unmasked(gpus: list[Gpu], mask: str | None) -> list[Gpu]:
    if mask is None:
        return gpus
    found: list[Gpu] = []
    for entry in mask.split(","):
        matching = [gpu for gpu in gpus if _is_named(gpu, entry.strip())]
        if len(matching) != 1:
            break
        found += matching
    return found if len(set(found)) == len(found) else []


def _is_named(gpu: Gpu, entry: str) -> bool:
    if entry.isdecimal():
        return gpu.index == int(entry)
    return entry.startswith("GPU-") and gpu.uuid.startswith(entry)


def _why_none() -> str:
    try:
        with _nvml():
            count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        return f"NVML says: {error}"
    mask = _mask()
    return f"NVML knows {count}" + (f", CUDA_VISIBLE_DEVICES={mask}" if mask is not None else "")


def _shortage(gpu: Gpu, needed: int) -> str | None:
    handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
    free = int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
    if free >= needed:
        return None
    return (
        f"{gpu} has {gb(free)} of {gb(gpu.total_bytes)} free, {gb(needed)} are needed;"
        f" {_holders(handle)}"
    )


def _holders(handle: Any) -> str:
    """Who holds memory on the device, the largest first. A process of another container may be
    missing or have no size."""
    sizes: Counter[int] = Counter()
    for ask in (
        pynvml.nvmlDeviceGetComputeRunningProcesses,
        pynvml.nvmlDeviceGetGraphicsRunningProcesses,
    ):
        with suppress(pynvml.NVMLError):
            for process in ask(handle):
                sizes[process.pid] = max(sizes[process.pid], process.usedGpuMemory or 0)
    if not sizes:
        return "NVML does not tell who holds it"
    return "held by " + ", ".join(
        f"pid {pid}{_name(pid)}" + (f" with {gb(size)}" if size else "")
        for pid, size in sizes.most_common()
    )


def _name(pid: int) -> str:
    words = str(_asked(pynvml.nvmlSystemGetProcessName, pid)).split()
    return f" ({PurePath(words[0]).name})" if words and words[0] != UNKNOWN else ""
