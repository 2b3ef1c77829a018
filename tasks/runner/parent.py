"""The parent's side of a step: start the child, follow its log and progress, end it for certain,
read its answer.

The child's stdout and stderr go to a file that is followed, never to our own: a child that inherits
them keeps Prefect's worker from noticing that the flow died. One process group per child; whatever
ends the wait (answer, timeout, cancellation, Ctrl-C, an exception) ends the whole group.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

from artifacts.store.files import disk_full_is_an_error
from artifacts.store.local import LocalStore
from configs.callbacks import Log, Progress, no_log, no_progress
from configs.errors import StepCrashed, StepTimeout, from_dict
from configs.paths import process_environment
from tasks.machine.gpus import Gpu, environment
from tasks.machine.sampler import GpuMemoryMeter
from tasks.runner.output import Tail, last_lines
from tasks.runner.process import (
    Streams,
    ending_signal,
    how_it_ended,
    kill_group,
    module_command,
    start,
)
from tasks.runner.step import In, Out, Request, Step

POLL_SECONDS = 0.1
NOTE = "running.json"  # who runs the step, while it runs
TOKEN = "LMFLOWS_STEP"  # an environment variable that all processes of a step share


@dataclass(frozen=True)
class Placement:
    """Where a step's child runs, and for how long.

    Attributes:
        folder: the step's folder in the run: request, log, events, answer. Made anew.
        store: the workspace's.
        timeout_s: seconds after which the child and all its processes are killed.
        gpus: those that the step computes on; the child's CUDA sees no others.
    """

    folder: Path
    store: LocalStore
    timeout_s: float
    gpus: tuple[Gpu, ...] = ()

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"


@dataclass(frozen=True)
class Usage:
    """What a child used: wall time in seconds, the most memory of its largest process, and the most
    GPU memory above what was in use when it started, both in bytes; None without a GPU."""

    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int | None


def run_child(
    step: Step[In, Out],
    request: In,
    place: Placement,
    *,
    progress: Progress = no_progress,
    log: Log = no_log,
) -> tuple[Out, Usage]:
    """Run a step in a process of its own; `progress` and `log` hear what it says, as it comes.

    Raises:
        StepTimeout, StepCrashed: the child was killed, or died without an answer.
        LmflowsError: what the step itself raised.
    """
    started = time.monotonic()
    token = uuid.uuid4().hex
    with disk_full_is_an_error(str(place.folder)):
        _prepare(place, request, token)
    child = _start(step, place, token)
    try:
        with GpuMemoryMeter(place.gpus) as meter:
            _follow(child, place, started + place.timeout_s, progress, log)
    except subprocess.TimeoutExpired:
        raise StepTimeout(
            f"ran longer than its limit of {place.timeout_s:.0f} s and was killed",
            where=f"step {step.name}",
            hint=f"raise timeout_minutes of its section in the config; its log: {place.log}",
        ) from None
    finally:
        kill_group(child)
        (place.folder / NOTE).unlink(missing_ok=True)
        place.store.sweep()
    seconds = time.monotonic() - started
    return _answer(step, child.returncode, place), _usage(place, seconds, meter.peak_bytes)


def reap_orphans(runs: Path) -> list[int]:
    """Kill what is left of steps whose flow is gone; returns the pids.

    The leader of each child does this at once; this is for the day when somebody kills the leader
    as well.
    """
    reaped = []
    for path in runs.glob(f"*/*/{NOTE}"):
        try:
            note = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if note["host"] != _host() or _same_process(note["flow"], note["flow_started"]):
            continue
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                # pids are used again, a token is not
                if process.environ().get(TOKEN) == note["token"]:
                    process.kill()
                    reaped.append(process.pid)
        path.unlink(missing_ok=True)
    return reaped


def _host() -> str:
    """Which kernel and which view of its processes this is: a home folder may be shared."""
    return (
        f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
        f" {os.readlink('/proc/self/ns/pid')}"
    )


def _prepare(place: Placement, request: Request, token: str) -> None:
    """Make the step's folder anew: what an earlier try left goes, request and note come."""
    place.folder.mkdir(parents=True, exist_ok=True)
    for name in ("answer.json", "usage.json", "events.jsonl", "log.txt"):
        (place.folder / name).unlink(missing_ok=True)
    (place.folder / "request.json").write_text(request.model_dump_json())
    note = {
        "host": _host(),
        "flow": os.getpid(),
        "flow_started": psutil.Process().create_time(),
        "token": token,
    }
    (place.folder / NOTE).write_text(json.dumps(note))


def _start(step: Step[In, Out], place: Placement, token: str) -> subprocess.Popen[bytes]:
    """SIGTERM, when this process dies, lets the child's leader end its whole group."""
    with place.log.open("wb") as output:
        return start(
            module_command(
                "tasks.runner.child",
                step.address,
                "--folder",
                place.folder,
                "--workspace",
                place.store.root,
            ),
            Streams(stdout=output),
            environment=process_environment() | environment(place.gpus) | {TOKEN: token},
            dies_by=signal.SIGTERM,
        )


def _same_process(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False


def _follow(
    child: subprocess.Popen[bytes], place: Placement, deadline: float, progress: Progress, log: Log
) -> None:
    """Hand on log lines and progress until the child ends; raises TimeoutExpired at the
    deadline."""
    output = Tail(place.log)
    events = Tail(place.folder / "events.jsonl")

    def hand_on(last: bool = False) -> None:
        for line in events.lines(last):
            # a line that the child did not live to finish
            with contextlib.suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                progress(event["fraction"], event["text"])
        for line in output.lines(last):
            log(line)

    while True:
        try:
            child.wait(POLL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            hand_on()
            if time.monotonic() > deadline:
                raise
    hand_on(last=True)


def _answer(step: Step[In, Out], returncode: int, place: Placement) -> Out:
    try:
        answer = json.loads((place.folder / "answer.json").read_text())
    except FileNotFoundError:
        raise _crash(step.name, returncode, place.log) from None
    if "error" in answer:
        raise from_dict(answer["error"])
    return step.result.model_validate(answer["result"])


def _crash(name: str, returncode: int, log: Path) -> StepCrashed:
    hint = f"its whole log: {log}"
    if ending_signal(returncode) == signal.SIGKILL:
        hint = f"the kernel may have run out of memory (see dmesg); {hint}"
    return StepCrashed(
        f"died with {how_it_ended(returncode)}; {last_lines(log)}", where=f"step {name}", hint=hint
    )


def _usage(place: Placement, seconds: float, peak_gpu_bytes: int | None) -> Usage:
    try:
        usage = json.loads((place.folder / "usage.json").read_text())
        return Usage(usage["seconds"], usage["peak_rss_bytes"], peak_gpu_bytes)
    except (OSError, ValueError, KeyError):
        return Usage(seconds, 0, peak_gpu_bytes)
