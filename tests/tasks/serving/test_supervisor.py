"""Servers under supervisord: they come back after a crash, outlive whoever started them, and end
when told to.

Real servers over the small model. Where a test only asks which processes run, it does not wait for
the model.
"""

# covers tasks/serving/endpoints.py

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from artifacts.manifest import ModelArtifact
from configs import paths
from configs.deployment import Deploy
from configs.engines import EngineTransformers
from configs.errors import EndpointError
from tasks.machine.ports import port_problem
from tasks.serving import endpoints, supervisor
from tasks.serving.endpoints import Endpoint
from tests.support import planted_runtime

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}


def new_endpoint(folder: Path, port: int, name: str = "tiny") -> Endpoint:
    endpoint = Endpoint(
        name=name,
        model_name="tiny",
        artifact=ModelArtifact(digest="0" * 64, kind="fp16", path=folder),
        engine=EngineTransformers(name="transformers"),
        options=Deploy(port=port),
        since=datetime.now(UTC),
    )
    endpoint.save([])
    return endpoint


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def answers(endpoint: Endpoint) -> bool:
    try:
        return (
            "Hello!"
            in endpoint.call("/v1/chat/completions", HELLO, timeout_s=20)["choices"][0]["message"][
                "content"
            ]
        )
    except EndpointError:
        return False


def is_server(pid: int) -> bool:
    """Whether a process has become the server: until then it is the launcher that reads the
    endpoint's record."""
    return pid != 0 and "tasks.serving.reference_server" in psutil.Process(pid).cmdline()


def processes_with(home: Path) -> list[psutil.Process]:
    """Every living process that was started for a home folder, supervisord among them."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.pid != os.getpid()
                and process.status() != psutil.STATUS_ZOMBIE
                and (
                    process.environ().get("LMFLOWS_HOME") == str(home)
                    or str(home) in " ".join(process.cmdline())
                )
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def outliving(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """An endpoint that answers, started by a process that has ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMFLOWS_HOME", str(tmp_path_factory.mktemp("outliving")))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        endpoint = new_endpoint(tiny_model, port)
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from tasks.serving import endpoints as e, supervisor as s; s.start(e.get('tiny'))",
            ],
            check=True,
            cwd=paths.PROJECT,
        )
        wait_for(lambda: answers(endpoint))
        yield endpoint
        supervisor.stop(endpoint)


def test_a_server_outlives_the_process_that_started_it(outliving: Endpoint) -> None:
    server = psutil.Process(supervisor.state(outliving)[1])
    assert server.ppid() == supervisor.pid()
    assert os.getsid(server.pid) != os.getsid(0)


def test_a_killed_server_is_restarted_and_answers_again(outliving: Endpoint) -> None:
    before = supervisor.state(outliving)[1]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: supervisor.state(outliving)[1] not in (0, before) and answers(outliving))


def test_two_endpoints_run_under_one_supervisord(
    outliving: Endpoint, tiny_model: Path, free_port: int
) -> None:
    first, supervisord = supervisor.state(outliving)[1], supervisor.pid()
    second = new_endpoint(tiny_model, free_port, "second.model_2-x")
    supervisor.start(second)
    try:
        assert (
            psutil.Process(supervisor.state(second)[1]).ppid()
            == psutil.Process(first).ppid()
            == supervisord
        )
    finally:
        supervisor.stop(second)
        second.forget()
    assert (supervisor.state(outliving)[1], supervisor.pid(), supervisor.state(second)) == (
        first,
        supervisord,
        ("STOPPED", 0),
    )


def test_stop_frees_the_port_and_leaves_no_process(outliving: Endpoint) -> None:
    assert processes_with(paths.home())
    supervisor.stop(outliving)
    assert port_problem(outliving.options.host, outliving.options.port) is None
    assert processes_with(paths.home()) == []


def test_what_a_killed_supervisord_leaves_behind_is_stopped_too(
    tiny_model: Path, home: Path, free_port: int
) -> None:
    endpoint = new_endpoint(tiny_model, free_port)
    supervisor.start(endpoint)
    wait_for(lambda: is_server(supervisor.state(endpoint)[1]), 20)
    os.kill(supervisor.pid() or 0, signal.SIGKILL)
    wait_for(lambda: supervisor.pid() is None)
    assert processes_with(home)
    supervisor.stop(endpoint)
    assert processes_with(home) == []


@pytest.mark.parametrize(
    "name",
    ["long " + "x" * 120, "100% of %(x)s, ${HOME} and %s"],
    ids=["longer_than_a_socket_path", "percent_and_spaces"],
)
def test_any_home_folder_will_do(
    tiny_model: Path, home: Path, free_port: int, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("LMFLOWS_HOME", str(home / name))
    endpoint = new_endpoint(tiny_model, free_port)
    supervisor.start(endpoint)
    try:
        wait_for(lambda: is_server(supervisor.state(endpoint)[1]), 20)
        assert (endpoint.folder / endpoints.LOG).exists()
    finally:
        supervisor.stop(endpoint)
    assert processes_with(home / name) == []


def test_a_server_runs_in_its_engines_runtime_and_sees_its_own_gpus(
    tiny_model: Path, home: Path, tmp_path: Path, free_port: int
) -> None:
    planted_runtime.adopt("side", tmp_path / "side")
    changes = {
        "engine": EngineTransformers(name="transformers", runtime="side"),
        "gpus": ("GPU-a", "GPU-b"),
    }
    endpoint = new_endpoint(tiny_model, free_port).model_copy(update=changes)
    endpoint.save([])
    supervisor.start(endpoint)
    wait_for(lambda: is_server(supervisor.state(endpoint)[1]), 20)
    environment = psutil.Process(supervisor.state(endpoint)[1]).environ()
    assert (environment[planted_runtime.MARK], environment["CUDA_VISIBLE_DEVICES"]) == (
        "side",
        "GPU-a,GPU-b",
    )


def test_stopping_what_does_not_run_is_no_error(
    tiny_model: Path, home: Path, free_port: int
) -> None:
    endpoint = new_endpoint(tiny_model, free_port)
    supervisor.stop(endpoint)
    assert (supervisor.state(endpoint), supervisor.pid()) == (("STOPPED", 0), None)


def test_a_supervisord_that_cannot_start_is_an_error_with_its_words(
    tiny_model: Path, home: Path, free_port: int
) -> None:
    endpoint = new_endpoint(tiny_model, free_port)
    (home / "supervisor" / "supervisord.log").mkdir(parents=True)
    with pytest.raises(EndpointError, match=r"(?s)supervisord did not start: .*Is a directory"):
        supervisor.start(endpoint)
