"""How much memory something takes at most: a thread looks now and then, and the largest figure is
kept. Sizes are bytes. Knows nothing of Prefect."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

import psutil
import pynvml

from tasks.machine.gpus import Gpu


class _Sampler:
    """Looks at fixed times from start to stop, and once more at the end. A context manager."""

    EVERY_SECONDS: ClassVar[float]

    def __init__(self) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to watch. Once."""
        self._thread.start()

    def sample(self) -> None:
        """Look now."""
        raise NotImplementedError

    def stop(self) -> None:
        """Look a last time and end; does nothing if it never began or has ended."""
        if self._thread.is_alive():
            self._end.set()
            self._thread.join()
            self.sample()

    def _watch(self) -> None:
        while not self._end.wait(self.EVERY_SECONDS):
            self.sample()


class GpuMemoryMeter(_Sampler):
    """The most memory that came into use on some GPUs since the start, over all of them at one
    moment.

    It is the device's figure, everybody's use together: a container often cannot see per-process
    ones. So it tells what a step took only while nobody else starts or ends on the same GPU. Peaks
    shorter than 50 ms can be missed.

    `peak_bytes` is None without a GPU, or if NVML does not tell.
    """

    EVERY_SECONDS = 0.05

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        super().__init__()
        self.peak_bytes: int | None = None
        self._uuids = [gpu.uuid for gpu in gpus]
        self._handles: list[Any] = []
        self._baseline = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Take the baseline and begin to watch. Once."""
        if not self._uuids:
            return
        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            try:
                self._handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in self._uuids]
                self._baseline = self._used()
            except pynvml.NVMLError:
                pynvml.nvmlShutdown()
                raise
            self.peak_bytes = 0
            super().start()

    def sample(self) -> None:
        with self._lock, suppress(pynvml.NVMLError):
            if self.peak_bytes is not None:
                self.peak_bytes = max(self.peak_bytes, self._used() - self._baseline)

    def stop(self) -> None:
        watched = self._thread.is_alive()
        super().stop()
        if watched:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def _used(self) -> int:
        return sum(int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in self._handles)


class HostMemoryMeter(_Sampler):
    """The most memory of this process and all below it: proportional set size, so that shared pages
    count once. Peaks shorter than 0.5 s can be missed."""

    EVERY_SECONDS = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._roots = [psutil.Process().pid]

    def watch(self, pid: int | None) -> None:
        """Count another tree as well: a daemon is nobody's child."""
        if pid is not None:
            self._roots.append(pid)

    def sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, sum(_proportional(pid) for pid in self._family()))

    def _family(self) -> set[int]:
        family: set[int] = set()
        for root in self._roots:
            with suppress(psutil.Error):
                children = psutil.Process(root).children(recursive=True)
                family |= {root, *(child.pid for child in children)}
        return family


def _proportional(pid: int) -> int:
    """A process's proportional set size; 0 if it has ended or is somebody else's."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
