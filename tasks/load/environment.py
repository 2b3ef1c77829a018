"""What a result holds on: the server's hardware, by which results may be compared, and its state
while it was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import statistics
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import psutil
import pynvml

from artifacts.records.load_results import Environment, GpuState, Spread
from configs.errors import DifferentHardware
from tasks.machine import gpus

SAMPLE_SECONDS = 0.25
# nvml.h, nvmlClocksEventReason*
REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
}


def fingerprint(url: str, gpu_uuids: Sequence[str] = ()) -> dict[str, str]:
    """What a server at `url` runs on: this machine's GPUs (those with the UUIDs, else all that are
    visible) or its processor, or the name of another machine, of which more cannot be known here.
    """
    host = urlsplit(url).hostname or ""
    if not is_local(host):
        return {"machine": host}
    used = _used(gpu_uuids)
    if used:
        return gpus.description(used[0]) | {"gpus": str(len(used))}
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
    }


def _used(gpu_uuids: Sequence[str]) -> list[gpus.Gpu]:
    """The visible GPUs with these UUIDs; without UUIDs all of them."""
    return [gpu for gpu in gpus.visible() if not gpu_uuids or gpu.uuid in gpu_uuids]


def is_local(host: str) -> bool:
    """Whether an address is this machine's."""
    with suppress(OSError):
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
        own = {
            address.address for interface in psutil.net_if_addrs().values() for address in interface
        }
        return all(address.startswith("127.") or address in own for address in addresses)
    return False


def require_same(first: Mapping[str, str], second: Mapping[str, str]) -> None:
    """Refuse to compare what holds on different hardware.

    Raises:
        DifferentHardware: with what differs.
    """
    if first != second:
        different = [
            f"{key} {first.get(key, 'unknown')} and {second.get(key, 'unknown')}"
            for key in sorted(first.keys() | second.keys())
            if first.get(key) != second.get(key)
        ]
        raise DifferentHardware(
            "measured on different hardware: " + ", ".join(different),
            where="comparison",
            hint="measure both on the same machine, GPU model and driver",
        )


def client_versions() -> dict[str, str]:
    """What sends the requests."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in ("lmdeploy-flows", "aiohttp")
    }


class Watch:
    """Samples clocks, temperature, power and throttle reasons of the server's GPUs, and the
    processors, in a thread.

    A context manager; `environment` is the state over its body. Of a server on another machine only
    the client's processors are known.

    Args:
        url: the server's.
        engine: what it runs, with versions, as far as it is known.
        gpu_uuids: those that it uses; empty for all that are visible.
    """

    def __init__(self, url: str, engine: dict[str, str], gpu_uuids: Sequence[str] = ()) -> None:
        self._fingerprint = fingerprint(url, gpu_uuids)
        self._engine = engine
        local = "machine" not in self._fingerprint
        self._gpus = [_Samples(gpu) for gpu in _used(gpu_uuids)] if local else []
        self._mhz: list[float] = []
        self._cpu: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        psutil.cpu_percent()
        if self._gpus:
            pynvml.nvmlInit()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._cpu = round(psutil.cpu_percent() / 100, 4)
        if self._gpus:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def environment(self) -> Environment:
        """The state over the body, once it has ended."""
        return Environment(
            fingerprint=self._fingerprint,
            gpus=tuple(samples.state() for samples in self._gpus),
            cpu_mhz=_spread(self._mhz),
            cpu_share=self._cpu,
            load_average=round(os.getloadavg()[0], 2),
            engine=self._engine,
            client=client_versions(),
        )

    def _run(self) -> None:
        while True:
            for samples in self._gpus:
                samples.take()
            with suppress(OSError, NotImplementedError):
                frequency = psutil.cpu_freq()
                if frequency:
                    self._mhz.append(float(frequency.current))
            if self._end.wait(SAMPLE_SECONDS):
                return


class _Samples:
    """What NVML reports of one GPU, sample by sample; what the board does not support stays
    empty."""

    def __init__(self, gpu: gpus.Gpu) -> None:
        self._gpu = gpu
        self._handle = None
        self._values: dict[str, list[float]] = {}
        self._reasons: Counter[str] = Counter()
        self._count = 0
        self._throttle_samples = 0
        self._limit: float | None = None

    def take(self) -> None:
        with suppress(pynvml.NVMLError):
            self._handle = self._handle or pynvml.nvmlDeviceGetHandleByUUID(self._gpu.uuid)
            self._count += 1
            handle = self._handle
            self._add("sm", lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))
            self._add(
                "memory", lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)
            )
            self._add(
                "temperature",
                lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            )
            self._add("power", lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3)
            self._add("utilization", lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            self._add("used", lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used)
            if self._limit is None:
                with suppress(pynvml.NVMLError):
                    self._limit = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3
            bits = int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
            self._throttle_samples += 1
            self._reasons.update(name for bit, name in REASONS.items() if bits & bit)

    def _add(self, name: str, ask: Any) -> None:
        with suppress(pynvml.NVMLError):
            self._values.setdefault(name, []).append(float(ask()))

    def state(self) -> GpuState:
        spread = {name: _spread(values) for name, values in self._values.items()}
        return GpuState(
            index=self._gpu.index,
            name=self._gpu.name,
            samples=self._count,
            sm_clock_mhz=spread.get("sm"),
            memory_clock_mhz=spread.get("memory"),
            temperature_c=spread.get("temperature"),
            power_w=spread.get("power"),
            power_limit_w=self._limit,
            utilization_percent=spread.get("utilization"),
            memory_used_bytes=spread.get("used"),
            throttle={
                reason: round(count / self._throttle_samples, 4)
                for reason, count in sorted(self._reasons.items())
            },
        )


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    return Spread(
        low=round(min(values), 1),
        median=round(statistics.median(values), 1),
        high=round(max(values), 1),
    )


def _processor() -> str:
    """The processor's model name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
