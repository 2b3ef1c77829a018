"""A model served for one conversation: `lmflows chat MODEL --engine ...` answers, and whatever ends
it, the server ends with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from artifacts.store.local import LocalStore
from configs import paths
from configs.engines import EngineTransformers
from configs.errors import EndpointError
from flows.cli import main
from tasks.runner import runtime_probe, runtimes
from tasks.serving.temporary import served
from tests.support.interpreters import another_python
from tests.support.patience import PATIENCE
from tests.support.processes import with_environment

HELLO = "Hello! How can I help you today?"


class Talk:
    """`lmflows chat` in a home and a temporary folder of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.home, self.temporary = folder / "home", folder / "temporary"
        self.temporary.mkdir()
        environment = os.environ | {"LMFLOWS_HOME": str(self.home), "TMPDIR": str(self.temporary)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.main", "chat", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=paths.PROJECT,
            env=environment,
            text=True,
        )

    def say(self, *lines: str) -> tuple[str, str]:
        """Everything that it answers to these lines, on stdout and on stderr."""
        return self.process.communicate("".join(line + "\n" for line in lines), timeout=PATIENCE)

    def servers(self) -> list[psutil.Process]:
        return [
            process
            for process in with_environment("LMFLOWS_HOME", str(self.home))
            if process.pid != self.process.pid
        ]


Start = Callable[..., Talk]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a `Talk`; what a failed test leaves of it is killed."""
    talks: list[Talk] = []

    def started(*words: str) -> Talk:
        talks.append(Talk(tmp_path, *words))
        return talks[-1]

    yield started
    for talk in talks:
        talk.process.kill()
        for server in talk.servers():
            server.kill()


def until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never {what}"
        time.sleep(0.05)


def test_it_answers_tells_the_time_and_leaves_nothing_behind(
    start: Start, tiny_model: Path
) -> None:
    talk = start(str(tiny_model), "--engine", "transformers", "--timing", "--max-tokens", "30")
    said, problem = talk.say("hello", "What is a list in Python?")
    assert (talk.process.returncode, problem) == (0, "")
    first, timing, second, _ = said.splitlines()
    assert first == HELLO and second
    found = re.fullmatch(
        r"\[(\d+) tokens in (\d+\.\d\d) s, (\d+\.\d) tokens/s, first after (\d+\.\d\d) s\]", timing
    )
    assert found, timing
    tokens, seconds, rate, until_first = map(float, found.groups())
    assert 8 < tokens <= 30 and 0 < until_first <= seconds and rate > 0
    assert talk.servers() == [] and list(talk.temporary.iterdir()) == []
    assert not (talk.home / "endpoints").exists(), "it is none of the deployed endpoints"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killed_while_it_answers_it_takes_its_server_along(
    how: signal.Signals, start: Start, tiny_model: Path
) -> None:
    talk = start(str(tiny_model), "--engine", "transformers")
    with talk.process as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("A\n")
        process.stdin.flush()
        assert process.stdout.read(1)
        assert len(talk.servers()) == 1
        process.send_signal(how)
        assert process.wait(PATIENCE) == (130 if how is signal.SIGTERM else -how)
    until(lambda: not talk.servers(), "ended", 10)
    if how is signal.SIGTERM:
        assert list(talk.temporary.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killed_while_it_loads_it_takes_its_server_along(
    how: signal.Signals, start: Start, tiny_model: Path
) -> None:
    talk = start(str(tiny_model), "--engine", "transformers")
    with talk.process as process:
        until(talk.servers, "started")
        process.send_signal(how)
        process.wait(PATIENCE)
    until(lambda: not talk.servers(), "ended", 10)
    if how is signal.SIGTERM:
        assert list(talk.temporary.iterdir()) == []


def test_an_engine_that_is_not_here_is_told_and_no_other_answers(
    start: Start, tiny_model: Path
) -> None:
    talk = start(str(tiny_model), "--engine", "turbomind")
    said, problem = talk.say("hello")
    assert (talk.process.returncode, said) == (1, "")
    assert (
        "EndpointError: engine turbomind: the server ended with status 1; its last lines:\n   "
        " engine turbomind: cannot be loaded" in problem
    )
    assert "Traceback" not in problem
    assert talk.servers() == [] and list(talk.temporary.iterdir()) == []


def test_a_server_that_dies_is_told_with_its_last_words(
    tiny_model: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runtime has lost its packages since it was adopted."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(runtime_probe, "NEEDS", ())
    runtimes.adopt("broken", another_python(tmp_path / "broken"))
    next((tmp_path / "broken").glob("lib/python3*/site-packages/others.pth")).unlink()
    with (
        pytest.raises(
            EndpointError,
            match=r"(?s)the server ended with status 1; its last lines:.*No module named",
        ) as caught,
        served(
            tiny_model,
            EngineTransformers(name="transformers", runtime="broken"),
            "fp16",
            trust_remote_code=False,
            limit_s=60,
            log=print,
        ),
    ):
        pytest.fail("there is no server")
    assert caught.value.where == "engine transformers" and not list(tmp_path.glob("lmflows-chat-*"))


def test_one_that_takes_too_long_is_ended(
    tiny_model: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    heard: list[str] = []
    with (
        pytest.raises(EndpointError, match="not ready after 1 s"),
        served(
            tiny_model,
            EngineTransformers(name="transformers"),
            "fp16",
            trust_remote_code=False,
            limit_s=1,
            log=heard.append,
        ),
    ):
        pytest.fail("it cannot be ready yet")
    assert heard[0].startswith(f"loading {tiny_model.name} with transformers: ")
    assert [
        process
        for process in with_environment("LMFLOWS_HOME", str(home))
        if process.pid != os.getpid()
    ] == []
    assert not list(tmp_path.glob("lmflows-chat-*"))


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        (
            ["EMPTY", "--engine", "transformers"],
            2,
            "no config.json -> name a folder in Hugging Face format",
        ),
        (
            ["REPORT", "--engine", "transformers"],
            2,
            "no config.json -> name a folder in Hugging Face format",
        ),
        (
            ["/nowhere", "--engine", "transformers"],
            1,
            "no artifact starts with '/nowhere' -> `lmflows ls` shows what there is",
        ),
        (
            ["MODEL", "--engine", "vllm"],
            2,
            "no engine 'vllm' -> one of transformers, turbomind, pytorch",
        ),
        (
            ["MODEL", "--engine", "transformers", "--variant", "fp16-kv4"],
            2,
            "transformers has no quantized KV cache -> use engine turbomind or pytorch",
        ),
        (
            ["MODEL", "--engine", "turbomind", "--cache-max-entry-count", "2"],
            2,
            "--cache-max-entry-count: 2.0 is not allowed",
        ),
        (["--engine", "transformers"], 2, "which model?"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    words: list[str],
    status: int,
    problem: str,
    tiny_model: Path,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = LocalStore(paths.workspace())
    with store.staging() as staging:
        staging.write("report.md", json.dumps("words").encode())
        report = store.commit(staging, "report", recipe={})
    (tmp_path / "empty").mkdir()
    places = {
        "EMPTY": str(tmp_path / "empty"),
        "REPORT": report.digest[:12],
        "MODEL": str(tiny_model),
    }
    monkeypatch.setattr(
        sys, "argv", ["lmflows", "chat", *(places.get(word, word) for word in words)]
    )
    with pytest.raises(SystemExit) as caught:
        main.main()
    said = capsys.readouterr()
    assert (caught.value.code, said.out) == (status, "")
    assert problem in said.err and len(said.err.splitlines()) == 1
