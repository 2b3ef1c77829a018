"""Two runs on one GPU wait for each other, and a crashed run's slot comes back: real processes, a
real Prefect, GPUs by name only.

Leases behind a server last a minute, so the run that dies there dies first, and the last test
looks.
"""

# covers flows/run/server_guard.py

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.settings import PREFECT_API_URL, temporary_settings

from configs.paths import PROJECT
from flows.run import gpu_slots
from flows.run.gpu_slots import held, slot_name
from tasks.machine.gpus import Gpu
from tests.support.patience import PATIENCE
from tests.support.prefect_server import prefect_server

pytestmark = pytest.mark.slow

HOLD = """
import select, sys, time
from flows.run.gpu_slots import held
from tasks.machine.gpus import Gpu
gpus = [Gpu(0, uuid, "Test", "sm_90", 1, 1, "1") for uuid in sys.argv[1].split(",")]
with held(gpus, log=lambda text: print("waiting", text, flush=True)):
    print("in", time.time(), flush=True)
    select.select([sys.stdin], [], [], float(sys.argv[2]))
    print("out", time.time(), flush=True)
"""
SERVER_LOOKS_SECONDS = 2  # for expired leases; its default is 15
A_MINUTE = 60 + SERVER_LOOKS_SECONDS + 15  # a lease, and a busy machine


class Holder:
    """A process that takes slots, holds them for some seconds or until it may let go, and ends."""

    def __init__(self, folder: Path, gpus: list[Gpu], seconds: float, **environment: str) -> None:
        self.output = folder / f"{uuid4()}.txt"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", HOLD, ",".join(gpu.uuid for gpu in gpus), str(seconds)],
                cwd=PROJECT,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=os.environ | environment,
            )

    def reaches(self, word: str, seconds: float = 60) -> Holder:
        """Wait until the process has said the word."""
        deadline = time.monotonic() + seconds
        while not re.search(rf"^{word} ", self.output.read_text(), re.MULTILINE):
            assert time.monotonic() < deadline and self.process.poll() in (
                None,
                0,
            ), self.output.read_text()
            time.sleep(0.05)
        return self

    def let_go(self) -> Holder:
        assert self.process.stdin
        self.process.stdin.close()
        return self

    def ends(self) -> Holder:
        assert self.process.wait(PATIENCE) == 0, self.output.read_text()
        return self

    def kill(self) -> float:
        """Kill -9 it with all its children, as an out-of-memory killer or a power switch would;
        returns when."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for child in children:
            child.kill()
        self.process.wait()
        return time.time()

    def time_of(self, word: str) -> float:
        return float(self.said(word)[0])

    def said(self, word: str) -> list[str]:
        return re.findall(rf"^{word} (.*)", self.output.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slots")


@pytest.fixture(scope="module")
def api(folder: Path) -> Iterator[str]:
    """A Prefect server of its own; this process talks to it, too."""
    looks = {"PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": str(SERVER_LOOKS_SECONDS)}
    with (
        prefect_server(folder / "prefect", **looks) as url,
        temporary_settings({PREFECT_API_URL: url}),
    ):
        yield url


@pytest.fixture(scope="module")
def killed(folder: Path, api: str) -> tuple[float, Holder]:
    """A run behind the server that was killed at a time, and another one that waits for its
    slot."""
    gpu = new_gpu()
    holder = Holder(folder, [gpu], 600, PREFECT_API_URL=api).reaches("in")
    then = holder.kill()
    return then, Holder(folder, [gpu], 0, PREFECT_API_URL=api)


@pytest.fixture
def gpu() -> Gpu:
    return new_gpu()


def new_gpu() -> Gpu:
    return Gpu(
        index=0,
        uuid=f"GPU-{uuid4()}",
        name="Test",
        architecture="sm_90",
        total_bytes=1,
        free_bytes=1,
        driver="1",
    )


def slots_in_use(gpu: Gpu) -> int:
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(slot_name(gpu)).active_slots


def nobody_waits(text: str) -> None:
    pytest.fail(f"it waits: {text}")


def test_two_runs_on_one_gpu_take_turns_and_the_second_says_once_who_has_it(
    folder: Path, api: str, killed: object, gpu: Gpu
) -> None:
    first = Holder(folder, [gpu], 60, PREFECT_API_URL=api).reaches("in")
    second = Holder(folder, [gpu], 0, PREFECT_API_URL=api).reaches("waiting")
    assert slots_in_use(gpu) == 1
    assert first.let_go().ends().time_of("out") <= second.ends().time_of("in")
    assert second.time_of("in") - first.time_of("out") < 10
    assert (
        len(second.said("waiting")) == 1
        and f"GPU 0 (Test) is in use by pid {first.process.pid} of " in second.said("waiting")[0]
    )
    assert slots_in_use(gpu) == 0


def test_two_gpus_named_in_opposite_order_are_no_deadlock(folder: Path, api: str, gpu: Gpu) -> None:
    pair = sorted([gpu, new_gpu()], key=lambda gpu: gpu.uuid)
    # so that one of them surely stands between its two GPUs
    with held(pair[1:], log=nobody_waits):
        both = [
            Holder(folder, gpus, 0.2, PREFECT_API_URL=api).reaches("waiting")
            for gpus in (pair, pair[::-1])
        ]
    first, second = sorted(
        (holder.ends() for holder in both), key=lambda holder: holder.time_of("in")
    )
    assert second.time_of("in") >= first.time_of("out")


def test_runs_with_different_prefects_exclude_each_other_even_if_one_is_down(
    folder: Path, api: str, gpu: Gpu
) -> None:
    first = Holder(folder, [gpu], 60, PREFECT_API_URL=api).reaches("in")
    second = Holder(
        folder, [gpu], 0, PREFECT_API_URL="http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES="0"
    ).reaches("waiting")
    assert first.let_go().ends().time_of("out") <= second.ends().time_of("in")
    assert "Prefect gives no slot for GPU 0 (Test), going on without" in second.said("waiting")[-1]


def test_behind_ephemeral_servers_a_killed_run_gives_its_slot_back_at_once(
    folder: Path, api: str, gpu: Gpu
) -> None:
    """Each of them has a server process of its own over one SQLite file (that of `api`); the killed
    one's dies with it."""
    shared = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    holder = Holder(folder, [gpu], 600, **shared).reaches("in")
    other = Holder(folder, [gpu], 0, **shared).reaches("waiting")
    assert not other.said("in")
    then = holder.kill()
    assert other.reaches("in").time_of("in") - then < 60  # it starts its server first
    assert len(other.ends().said("waiting")) == 1


def test_an_exception_in_the_body_frees_the_slot_and_comes_out(api: str, gpu: Gpu) -> None:
    with pytest.raises(ZeroDivisionError), held([gpu], log=nobody_waits):
        assert slots_in_use(gpu) == 1
        _ = 1 // 0
    assert slots_in_use(gpu) == 0
    with held([gpu], log=nobody_waits):
        pass


def test_a_child_that_is_being_started_keeps_the_slot_for_a_moment_and_nobody_is_told_of_a_wait(
    api: str, gpu: Gpu
) -> None:
    """Between fork and exec a child has all files of its parent, the lock among them."""
    with held([gpu], log=nobody_waits):
        threading.Thread(
            target=subprocess.run, args=(["true"],), kwargs={"preexec_fn": lambda: time.sleep(0.3)}
        ).start()
        time.sleep(0.1)
    with held([gpu], log=nobody_waits):
        pass


def test_a_gpu_that_is_named_twice_is_taken_once(api: str, gpu: Gpu) -> None:
    with held([gpu, replace(gpu, free_bytes=0)], log=nobody_waits):
        assert slots_in_use(gpu) == 1


def test_a_slot_that_somebody_took_from_prefect_alone_is_waited_for(api: str, gpu: Gpu) -> None:
    said: list[str] = []
    with held([gpu], log=nobody_waits):
        pass  # now the limit exists
    with concurrency(slot_name(gpu), strict=True):
        thread = threading.Thread(target=take, args=(api, gpu, said))
        thread.start()
        thread.join(3)
        assert (
            thread.is_alive()
            and len(said) == 1
            and f"Prefect's slot {slot_name(gpu)} is taken" in said[0]
        )
    thread.join(10)
    assert said[1:] == ["in"]


def take(api: str, gpu: Gpu, said: list[str]) -> None:
    with temporary_settings({PREFECT_API_URL: api}), held([gpu], log=said.append):
        said.append("in")


def test_a_slot_whose_lease_a_restarted_server_has_forgotten_is_taken_after_a_while(
    api: str, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_slots, "LOST_SECONDS", 1)
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(
            GlobalConcurrencyLimitCreate(name=slot_name(gpu), limit=1, active_slots=1)
        )
    said: list[str] = []
    began = time.monotonic()
    with held([gpu], log=said.append):
        assert time.monotonic() - began >= 1 and len(said) == 1
        assert slots_in_use(gpu) == 1
    assert slots_in_use(gpu) == 0


def test_steps_of_one_run_take_turns(api: str, gpu: Gpu) -> None:
    said: list[str] = []
    threads = [threading.Thread(target=take, args=(api, gpu, said)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert said.count("in") == 3 and all(
        "in use by another step of this run" in text for text in said if text != "in"
    )


def test_creating_a_limit_that_somebody_creates_at_the_same_moment_is_fine(
    api: str, gpu: Gpu
) -> None:
    def create(_: int) -> int:
        with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
            together.wait()
            return gpu_slots._limit(client, slot_name(gpu)).limit

    together = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(create, range(4))) == [1] * 4


def test_a_run_without_a_gpu_asks_prefect_nothing() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        with (
            temporary_settings(
                {PREFECT_API_URL: f"http://127.0.0.1:{listener.getsockname()[1]}/api"}
            ),
            held([], log=nobody_waits),
        ):
            pass
        with pytest.raises(TimeoutError):
            listener.accept()


def test_behind_a_server_a_killed_run_gives_its_slot_back_when_its_lease_ends(
    killed: tuple[float, Holder],
) -> None:
    then, other = killed
    other.reaches("in", seconds=A_MINUTE)
    assert 30 < other.time_of("in") - then < A_MINUTE
    assert "Prefect's slot gpu:" in other.ends().said("waiting")[0]
