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
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from artifacts.store.files import disk_full_is_an_error
from artifacts.store.local import LocalStore
from configs.errors import LmflowsError, StepCrashed, StepTimeout, from_dict
from configs.paths import process_environment
from tasks.machine.gpus import Gpu, PeakMeter, environment
from tasks.runner.step import In, Out, Step

POLL_SECONDS = 0.1
LAST_LINES = 15
NOTE = "running.json"  # who runs the step, while it runs
TOKEN = "LMFLOWS_STEP"  # an environment variable that all processes of a step share
DYING_SECONDS = 5.0  # SIGKILL is quick, but a process in the middle of a large write takes its time


class Listener(Protocol):
    """Who hears what a child says while it runs."""

    def line(self, text: str) -> None: ...

    def progress(self, fraction: float, text: str) -> None: ...


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
    *,
    folder: Path,
    store: LocalStore,
    timeout_s: float,
    listener: Listener,
    gpus: Sequence[Gpu] = (),
) -> tuple[Out, Usage]:
    """Run a step in a process of its own.

    Args:
        folder: the step's folder in the run: request, log, events, answer. Made anew.
        timeout_s: seconds after which the child and all its processes are killed.
        gpus: those that the step computes on; the child's CUDA sees no others.

    Raises:
        StepTimeout, StepCrashed: the child was killed, or died without an answer.
        LmflowsError: what the step itself raised.
    """
    started, token = time.monotonic(), uuid.uuid4().hex
    with disk_full_is_an_error(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("answer.json", "usage.json", "events.jsonl", "log.txt"):
            (folder / name).unlink(missing_ok=True)
        (folder / "request.json").write_text(request.model_dump_json())
        (folder / NOTE).write_text(
            json.dumps(
                {
                    "host": _host(),
                    "flow": os.getpid(),
                    "flow_started": psutil.Process().create_time(),
                    "token": token,
                }
            )
        )
    with (folder / "log.txt").open("wb") as log:
        child = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "tasks.runner.child",
                step.address,
                "--folder",
                folder,
                "--workspace",
                store.root,
                "--parent",
                str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(gpus) | {TOKEN: token},
        )
    try:
        with PeakMeter(gpus) as meter:
            _follow(child, folder, started + timeout_s, listener)
    except subprocess.TimeoutExpired:
        raise StepTimeout(
            f"ran longer than its limit of {timeout_s:.0f} s and was killed",
            where=f"step {step.name}",
            hint=(
                f"raise timeout_minutes of its section in the config; its log: {folder / 'log.txt'}"
            ),
        ) from None
    finally:
        kill_group(child)
        (folder / NOTE).unlink(missing_ok=True)
        store.sweep()
    return _answer(step, child.returncode, folder), _usage(
        folder, time.monotonic() - started, meter.peak_bytes
    )


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kill every process that is left in the child's group, reap the child, and wait until all are
    gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    deadline = time.monotonic() + DYING_SECONDS
    while _members(child.pid) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 10)


def _members(group: int) -> list[psutil.Process]:
    """The living processes of a process group; a zombie is dead, it only has not been reaped."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def reap_orphans(runs: Path) -> list[int]:
    """Kill what is left of steps whose flow is gone; returns the pids.

    The guard of each child does this at once; this is for the day when somebody kills the guard as
    well.
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


def _environment(gpus: Sequence[Gpu]) -> dict[str, str]:
    return os.environ | process_environment() | environment(gpus)


def _same_process(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False


def _follow(
    child: subprocess.Popen[bytes], folder: Path, deadline: float, listener: Listener
) -> None:
    """Hand on log lines and progress until the child ends; raises TimeoutExpired at the
    deadline."""
    log, events = Tail(folder / "log.txt"), Tail(folder / "events.jsonl")

    def hand_on(last: bool = False) -> None:
        for line in events.lines(last):
            # a line that the child did not live to finish
            with contextlib.suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                listener.progress(event["fraction"], event["text"])
        for line in log.lines(last):
            listener.line(line)

    while True:
        try:
            child.wait(POLL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            hand_on()
            if time.monotonic() > deadline:
                raise
    hand_on(last=True)


class Tail:
    """The new whole lines of a growing file. A progress bar's carriage returns keep only its last
    state."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def lines(self, last: bool = False) -> list[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        end = len(data) if last else data.rfind(b"\n") + 1
        self.offset += end
        texts = [
            line.rsplit(b"\r", 1)[-1].decode(errors="replace").rstrip()
            for line in data[:end].split(b"\n")
        ]
        return [text for text in texts if text]


def _answer(step: Step[In, Out], returncode: int, folder: Path) -> Out:
    try:
        answer = json.loads((folder / "answer.json").read_text())
    except FileNotFoundError:
        raise _crash(step.name, returncode, folder) from None
    if "error" in answer:
        raise from_dict(answer["error"])
    return step.result.model_validate(answer["result"])


def _crash(name: str, returncode: int, folder: Path) -> LmflowsError:
    code = -returncode if returncode < 0 else returncode - 128
    how = f"exit status {returncode}"
    if code in {item.value for item in signal.Signals}:
        how = f"signal {signal.Signals(code).name}"
    hint = f"its whole log: {folder / 'log.txt'}"
    if code == signal.SIGKILL:
        hint = f"the kernel may have run out of memory (see dmesg); {hint}"
    last = Tail(folder / "log.txt").lines(last=True)[-LAST_LINES:]
    return StepCrashed(
        f"died with {how}; its last lines:\n    " + "\n    ".join(last or ["(none)"]),
        where=f"step {name}",
        hint=hint,
    )


def _usage(folder: Path, seconds: float, peak_gpu_bytes: int | None) -> Usage:
    try:
        usage = json.loads((folder / "usage.json").read_text())
        return Usage(usage["seconds"], usage["peak_rss_bytes"], peak_gpu_bytes)
    except (OSError, ValueError, KeyError):
        return Usage(seconds, 0, peak_gpu_bytes)
