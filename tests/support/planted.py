"""Steps that go wrong on purpose, for the tests of how a step's child process is run."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

from configs.errors import TransferError
from tasks.runner.step import Context, Request, Result, step


class Planted(Request):
    folder: Path
    seconds: float = 0.0


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
    """Says which GPUs it may use."""
    print(f"GPUs {os.environ.get('CUDA_VISIBLE_DEVICES')!r}", flush=True)
    return Answer(pid=os.getpid())


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
