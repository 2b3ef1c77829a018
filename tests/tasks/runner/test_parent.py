"""A step's child process: what it says arrives, and it never outlives what ends it."""

# covers configs/callbacks.py
# covers tasks/runner/child.py

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from artifacts.store.local import LocalStore
from configs.callbacks import Progress, no_progress
from configs.errors import LmflowsError, StepCrashed, StepFailed, StepTimeout
from configs.paths import PROJECT
from tasks.machine.gpus import Gpu
from tasks.runner.parent import Placement, reap_orphans, run_child
from tasks.runner.step import Step
from tests.support import planted
from tests.support.heard import Heard
from tests.support.patience import PATIENCE
from tests.support.planted import Answer, Planted
from tests.support.processes import all_gone


def place(tmp_path: Path, name: str = "step", timeout_s: float = 60) -> Placement:
    return Placement(
        tmp_path / "runs" / "run" / name, LocalStore(tmp_path / "store"), timeout_s=timeout_s
    )


def run(
    step: Step[Planted, Answer],
    tmp_path: Path,
    *,
    timeout_s: float = 60,
    progress: Progress = no_progress,
) -> Answer:
    here = place(tmp_path, step.name, timeout_s)
    return run_child(step, Planted(folder=tmp_path), here, progress=progress)[0]


def wait_for(path: Path) -> list[int]:
    """The pids in a file that a child will write."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()).count(" ") == 2:
            return [int(pid) for pid in text.split()]
        time.sleep(0.05)
    raise AssertionError("the child never started")


def test_log_progress_answer_and_usage_arrive(tmp_path: Path) -> None:
    heard = Heard()
    answer, usage = run_child(
        planted.well,
        Planted(folder=tmp_path),
        place(tmp_path),
        progress=heard.progress,
        log=heard.log,
    )
    assert answer.pid != os.getpid()
    assert heard.lines == ["a line", " 90%"]
    assert heard.events == [(0.5, "half way")]
    assert usage.seconds > 0 and usage.peak_rss_bytes > 1_000_000 and usage.peak_gpu_bytes is None


@pytest.mark.parametrize(
    ("gpus", "seen"),
    [
        ((), ["GPUs ''", "may ask about '7'"]),
        (
            (
                Gpu(1, "GPU-b", "Test", "sm_90", 1, 1, "1"),
                Gpu(0, "GPU-a", "Test", "sm_90", 1, 1, "1"),
            ),
            ["GPUs 'GPU-b,GPU-a'", "may ask about 'GPU-b,GPU-a'"],
        ),
    ],
)
def test_cuda_shows_a_child_only_the_gpus_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...], seen: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    heard = Heard()
    here = dataclasses.replace(place(tmp_path), gpus=gpus)
    run_child(planted.sees, Planted(folder=tmp_path), here, log=heard.log)
    assert heard.lines == seen


def test_a_timeout_interrupts_and_kills_grandchildren(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(StepTimeout, match="longer than its limit of 3 s"):
        run(planted.sleeps, tmp_path, timeout_s=3)
    assert time.monotonic() - started < 10
    assert all_gone(wait_for(tmp_path / "pids"), 5)


def test_a_killed_step_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(StepTimeout):
        run(planted.sleeps, tmp_path, timeout_s=3)
    assert list((tmp_path / "store" / "tmp").iterdir()) == []


def test_an_abort_from_c_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(StepCrashed) as caught:
        run(planted.aborts, tmp_path)
    assert "SIGABRT" in caught.value.message
    assert (
        "terminate called after throwing" in caught.value.message
        and "loading the engine" in caught.value.message
    )


def test_a_segmentation_fault_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepCrashed, match="SIGSEGV"):
        run(planted.segfaults, tmp_path)


def test_an_exit_without_an_answer_is_a_crash(tmp_path: Path) -> None:
    with pytest.raises(StepCrashed, match="exit status 7"):
        run(planted.leaves, tmp_path)


def test_an_unforeseen_exception_points_to_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"KeyError: 'model.layers.24'") as caught:
        run(planted.raises, tmp_path)
    log = Path(caught.value.hint.removeprefix("the traceback is in "))
    assert "Traceback" in log.read_text()


def test_an_error_of_the_step_comes_back_as_itself(tmp_path: Path) -> None:
    with pytest.raises(LmflowsError) as caught:
        run(planted.breaks_off, tmp_path)
    assert (type(caught.value).__name__, caught.value.retryable, caught.value.where) == (
        "TransferError",
        True,
        "the network",
    )


def test_an_exception_in_the_parent_ends_the_child(tmp_path: Path) -> None:
    def stop(_fraction: float, _text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(planted.well, tmp_path, progress=stop)
    assert not list((tmp_path / "runs").glob("*/*/running.json"))


FLOW = """
import sys
from pathlib import Path
from artifacts.store.local import LocalStore
from tasks.runner.parent import Placement, run_child
from tests.support import planted
folder = Path(sys.argv[1])
place = Placement(folder / "runs" / "run" / "sleeps", LocalStore(folder / "store"), timeout_s=600)
run_child(planted.sleeps, planted.Planted(folder=folder), place)
"""


def start_flow(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", FLOW, str(folder)], env=os.environ | {"PYTHONPATH": str(PROJECT)}
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_flow_leaves_no_child_alive(tmp_path: Path, how: signal.Signals) -> None:
    flow = start_flow(tmp_path)
    pids = wait_for(tmp_path / "pids")
    flow.send_signal(how)
    flow.wait()
    assert all_gone(pids, 10)


def test_the_next_run_reaps_what_a_killed_leader_left(tmp_path: Path) -> None:
    flow = start_flow(tmp_path)
    worker, grandchild, leader = wait_for(tmp_path / "pids")
    flow.send_signal(signal.SIGSTOP)  # so that it cannot clean up
    os.kill(leader, signal.SIGKILL)  # takes the worker along, but not the worker's own child
    assert all_gone([worker], 5) and psutil.pid_exists(grandchild)
    flow.kill()
    flow.wait()
    assert grandchild in reap_orphans(tmp_path / "runs")
    assert all_gone([grandchild], 5)


def test_declaring_steps_loads_neither_prefect_nor_torch() -> None:
    """A child may run in an environment without Prefect, and the flow's own process shall stay
    small."""
    names = sorted(path.stem for path in (PROJECT / "tasks").glob("[a-z]*.py"))
    assert "quantize" in names
    code = (
        "import sys; "
        + "; ".join(f"import tasks.{name}" for name in names)
        + "; sys.exit(str({'prefect', 'torch'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True
        ).stderr.strip()
        == "set()"
    )
