"""The most memory that something takes: of GPUs by an NVML that the test sets, of this machine by
processes that take some."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tasks.machine.gpus import visible
from tasks.machine.sampler import GpuMemoryMeter, HostMemoryMeter
from tests.support.nvml import GB, Board, Machine

Install = Callable[..., Machine]

# -- of GPUs


def test_without_gpus_nvml_is_not_asked(install: Install) -> None:
    machine = install(broken="not to be asked")
    with GpuMemoryMeter([]) as meter:
        meter.sample()
    assert meter.peak_bytes is None and machine.inits == 0


def test_the_peak_is_above_the_baseline_and_over_all_gpus_at_one_moment(install: Install) -> None:
    machine = install(Board("GPU-aa11", used=5 * GB), Board("GPU-bb22", used=7 * GB))
    with GpuMemoryMeter(visible()) as meter:
        machine.boards[0].used = 15 * GB
        meter.sample()
        machine.boards[0].used, machine.boards[1].used = 5 * GB, 13 * GB
        meter.sample()
        machine.boards[1].used = 0
    assert meter.peak_bytes == 10 * GB and machine.sessions == 0


def test_the_meter_looks_by_itself_with_one_init(install: Install) -> None:
    machine = install(Board("GPU-aa11"))
    chosen = visible()
    machine.inits = 0
    meter = GpuMemoryMeter(chosen)
    meter.start()
    machine.boards[0].used = 3 * GB
    deadline = time.monotonic() + 10
    while meter.peak_bytes == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert meter.peak_bytes == 3 * GB and machine.inits == 1
    meter.stop()
    meter.stop()
    assert machine.sessions == 0


def test_a_meter_whose_gpu_stops_telling_keeps_what_it_saw(install: Install) -> None:
    machine = install(Board("GPU-aa11"))
    with GpuMemoryMeter(visible()) as meter:
        machine.boards[0].used = GB
        meter.sample()
        machine.boards[0].deaf = {"MemoryInfo"}
        meter.sample()
    assert meter.peak_bytes == GB and machine.sessions == 0


def test_a_meter_that_cannot_begin_measures_nothing(install: Install) -> None:
    machine = install(Board("GPU-aa11"))
    chosen = visible()
    machine.boards[0].deaf = {"MemoryInfo"}
    with GpuMemoryMeter(chosen) as meter:
        pass
    assert meter.peak_bytes is None and machine.sessions == 0


# -- of this machine

TAKES = "x = bytearray(100_000_000); print('taken', flush=True); input()"


@contextmanager
def taking() -> Iterator[int]:
    """A process that holds 100 MB while the body runs; its pid."""
    with subprocess.Popen(
        [sys.executable, "-c", TAKES], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        yield process.pid
        process.kill()


def test_a_child_counts_and_the_end_is_looked_at() -> None:
    """Without the last look this would be over before the first."""
    with HostMemoryMeter() as alone:
        pass
    with HostMemoryMeter() as meter, taking():
        meter.stop()
    assert meter.peak_bytes > alone.peak_bytes + 90_000_000


def test_another_tree_counts_if_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with taking() as pid:
        meter = HostMemoryMeter()
        monkeypatch.setattr(meter, "_roots", [])
        meter.sample()
        assert meter.peak_bytes == 0
        meter.watch(None)
        meter.watch(pid)
        meter.sample()
        assert meter.peak_bytes > 90_000_000


def test_a_process_that_has_ended_takes_nothing() -> None:
    with taking() as pid:
        pass
    meter = HostMemoryMeter()
    meter.watch(pid)
    meter.sample()
    assert meter.peak_bytes > 0
