"""Steps that go wrong on purpose, for the tests of how a step's child process is run."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from configs.errors import TransferError
from tasks.machine.gpus import FLOWS_MASK
from tasks.runner.step import Context, Request, Result, step


class Planted(Request):
    folder: Path
    seconds: float = 0.0
    minutes: float = 5.0

    @property
    def limit_minutes(self) -> float:
        return self.minutes


class Answer(Result):
    pid: int


@step()
def well(request: Planted, context: Context) -> Answer:
    """Answers."""
    print("a line", flush=True)
    print("\r 10%\r 90%", flush=True)
    context.progress(0.5, "half way")
    return Answer(pid=os.getpid())


@step()
def sees(request: Planted, context: Context) -> Answer:
    """Says which GPUs CUDA shows it, and which ones it may ask about."""
    print(f"GPUs {os.environ.get('CUDA_VISIBLE_DEVICES')!r}", flush=True)
    print(f"may ask about {os.environ.get(FLOWS_MASK)!r}", flush=True)
    return Answer(pid=os.getpid())


class Slots(Result):
    """Whether the slot of each GPU is held."""

    held: tuple[bool, ...]


def slots_of(uuids: Sequence[str]) -> tuple[bool, ...]:
    """Whether somebody holds the lock of each GPU."""
    return tuple(_is_held(uuid) for uuid in uuids)


def _is_held(uuid: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(f"\0lmdeploy-flows gpu {uuid}")
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        return False


class Uuids(Request):
    uuids: tuple[str, ...]


@step(gpu=True, child=False, cached=False)
def computes_on_gpus(request: Uuids, context: Context) -> Slots:
    """Is declared to compute on GPUs, and says which slots are held meanwhile."""
    return Slots(held=slots_of(request.uuids))


@step(child=False, cached=False)
def computes_on_none(request: Uuids, context: Context) -> Slots:
    """Is not declared to compute on GPUs, and says which slots are held meanwhile."""
    return Slots(held=slots_of(request.uuids))


@step()
def sleeps(request: Planted, context: Context) -> Answer:
    """Starts a grandchild, notes both pids, and sleeps for ever."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (request.folder / "pids").write_text(f"{os.getpid()} {grandchild.pid} {os.getppid()}")
    with context.store.staging() as staging:
        staging.write("half", b"written")
        time.sleep(600)
    return Answer(pid=0)


@step()
def aborts(request: Planted, context: Context) -> Answer:
    """Says something and aborts from C."""
    print("loading the engine", flush=True)
    os.write(2, b"terminate called after throwing an instance of 'std::runtime_error'\n")
    ctypes.CDLL(None).abort()
    return Answer(pid=0)


@step()
def segfaults(request: Planted, context: Context) -> Answer:
    """Reads address 0."""
    ctypes.string_at(0)
    return Answer(pid=0)


@step()
def leaves(request: Planted, context: Context) -> Answer:
    """Ends the process without an answer."""
    os._exit(7)


@step()
def raises(request: Planted, context: Context) -> Answer:
    """Raises what nobody foresaw."""
    raise KeyError("model.layers.24")


@step(retries=2)
def breaks_off(request: Planted, context: Context) -> Answer:
    """Fails with an error that a retry can help, twice; then answers."""
    note = request.folder / "tries"
    with note.open("a") as file:
        file.write("x")
    if len(note.read_text()) < 3:
        raise TransferError("the line went dead", where="the network", hint="try again")
    return Answer(pid=os.getpid())
