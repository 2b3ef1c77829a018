"""`lmflows chat`: a conversation in the terminal with a real server, and what the reader sees when
there is none."""

# covers flows/cli/conversation.py

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from artifacts.manifest import ModelArtifact
from configs import paths
from configs.deployment import Deploy
from configs.engines import EngineTransformers
from tasks.engines.reference import ReferenceEngine
from tasks.serving.endpoints import Endpoint
from tests.support.patience import PATIENCE
from tests.support.reference_server import serving


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> ReferenceEngine:
    return ReferenceEngine(tiny_model)


@pytest.fixture(scope="module")
def url(engine: ReferenceEngine) -> Iterator[str]:
    with serving(engine, ["secret"]) as address:
        yield address


def chat(
    url: str, lines: str, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "chat", "--url", f"{url}/v1", *options],
        input=lines,
        capture_output=True,
        text=True,
        cwd=paths.PROJECT,
        env=os.environ | {"OPENAI_API_KEY": "secret"} | environment,
        timeout=PATIENCE,
    )


def test_each_turn_is_answered_with_the_turns_before_it_in_mind(
    url: str, engine: ReferenceEngine
) -> None:
    messages: list[dict[str, str]] = []
    for prompt in ("A", "hello"):
        messages.append({"role": "user", "content": prompt})
        messages.append(
            {
                "role": "assistant",
                "content": engine.generate([engine.prompt_ids(messages)], 64)[0].text,
            }
        )
    answers = "".join(message["content"] + "\n" for message in messages[1::2])
    done = chat(url, "A\nhello\n", "--max-tokens", "64")
    assert (done.stdout, done.stderr, done.returncode) == (answers, "", 0)


def test_new_forgets_the_conversation(url: str) -> None:
    first, second = chat(url, "hello\n/new\nhello\n").stdout.splitlines()
    assert first == second == "Hello! How can I help you today?"


def test_timing_tells_tokens_and_seconds_of_each_answer(url: str, engine: ReferenceEngine) -> None:
    done = chat(url, "hello\n/new\nA\n", "--timing", "--max-tokens", "20")
    lines = done.stdout.splitlines()
    expected = [
        engine.generate([engine.prompt_ids([{"role": "user", "content": prompt}])], 20)[0]
        for prompt in ("hello", "A")
    ]
    told = [
        re.fullmatch(
            r"\[(\d+) tokens in ([\d.]+) s, ([\d.]+) tokens/s, first after ([\d.]+) s\]", line
        )
        for line in lines
    ]
    found = [match for match in told if match]
    assert [int(match[1]) for match in found] == [answer.tokens for answer in expected]
    assert [line for line, match in zip(lines, told, strict=True) if not match] == [
        line for one in expected for line in one.text.splitlines()
    ]
    for match in found:
        tokens, seconds, rate, first = map(float, match.groups())
        assert 0 <= first <= seconds and tokens / (seconds + 0.005) - 0.05 <= rate, (
            "as far as two decimals of a second tell"
        )
        assert seconds == 0 or rate <= tokens / (seconds - 0.005) + 0.05


def test_words_appear_as_they_are_generated(
    url: str, engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls, go_on = engine.model.forward, iter(range(10**6)), threading.Event()

    @functools.wraps(forward)
    def stops_in_the_middle(**inputs: Any) -> Any:
        if next(calls) == 6:
            go_on.wait(30)
        return forward(**inputs)

    monkeypatch.setattr(engine.model, "forward", stops_in_the_middle)
    command = [sys.executable, "-m", "flows.cli.main", "chat", "--url", f"{url}/v1"]
    environment, started = os.environ | {"OPENAI_API_KEY": "secret"}, time.monotonic()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=paths.PROJECT, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"hello\n")
        process.stdin.close()
        so_far = os.read(process.stdout.fileno(), 1)
        # had the program waited for the whole answer, the wait above would have run out
        go_on.set()
        assert time.monotonic() - started < 30
        assert so_far + process.stdout.read() == b"Hello! How can I help you today?\n"


def test_the_only_endpoint_is_taken_with_its_key_and_without_a_proxy(
    url: str, home: Path, free_port: int
) -> None:
    Endpoint(
        name="only",
        model_name="tiny",
        artifact=ModelArtifact(digest="0" * 64, kind="fp16", path=home),
        since=datetime.now(UTC),
        engine=EngineTransformers(name="transformers"),
        options=Deploy(port=int(url.rpartition(":")[2])),
    ).save(["secret"])
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "chat"],
        input="hello\n",
        capture_output=True,
        text=True,
        cwd=paths.PROJECT,
        timeout=PATIENCE,
        env=os.environ | {"HTTP_PROXY": f"http://127.0.0.1:{free_port}", "NO_PROXY": ""},
    )
    assert (done.stdout, done.stderr) == ("Hello! How can I help you today?\n", "")


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command may write."""
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    return line


def test_a_server_that_is_down_is_one_clear_line(free_port: int) -> None:
    assert "does not answer" in failure(chat(f"http://127.0.0.1:{free_port}", "hello\n"))


def test_a_refusal_is_one_line_with_the_servers_words(url: str) -> None:
    assert "invalid API key" in failure(chat(url, "hello\n", OPENAI_API_KEY="wrong"))


class _BreaksOff(http.server.BaseHTTPRequestHandler):
    """A server that dies in the middle of an answer."""

    def do_GET(self) -> None:
        body = (
            b'{"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by":'
            b' "x"}]}'
        )
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self.wfile.write(
            b'data: {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", '
            b'"choices": [{"index": 0, "delta": {"content": "So far"}}]}\n\n'
        )

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_dies_in_the_middle_of_an_answer_is_one_clear_line() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _BreaksOff) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = chat(f"http://127.0.0.1:{server.server_port}", "hello\n")
        server.shutdown()
    assert done.stdout.startswith("So far")
    assert "does not answer" in failure(done)
