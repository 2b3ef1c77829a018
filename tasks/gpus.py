"""What GPUs this machine has, by NVML: without torch, so that the flow's own process and a cache key can ask."""

from __future__ import annotations

import os

import pynvml


def free_bytes() -> list[int]:
    """Free memory of each GPU that `CUDA_VISIBLE_DEVICES` leaves visible, in bytes; empty without one."""
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            handles[str(index)] = handles[str(pynvml.nvmlDeviceGetUUID(handle))] = handle
        indices = [str(index) for index in range(len(handles) // 2)] if mask is None else [name.strip() for name in mask.split(",")]
        return [int(pynvml.nvmlDeviceGetMemoryInfo(handles[index]).free) for index in indices if index in handles]
    except pynvml.NVMLError:  # a board that does not tell
        return []
    finally:
        pynvml.nvmlShutdown()


def cuda_is_visible() -> bool:
    """Whether a step of this run will find a CUDA GPU: what `device: auto` comes down to."""
    return bool(free_bytes())
