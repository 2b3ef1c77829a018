"""One request to an OpenAI-compatible server, and when each piece of its streamed answer came.

All events that one read brings have one time: finer than that a client cannot know it.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from artifacts.records.load_results import OK

LONGEST_DETAIL = 300  # characters, or bytes of an event
PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True)
class Service:
    """Whom to ask, and for what. `key` is an API key or empty."""

    url: str
    model: str
    key: str
    api: str
    new_tokens: int
    timeout_s: float

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def body(self, prompt: str) -> dict[str, Any]:
        """The JSON of a request: greedy, and as long as was asked where the server knows
        `ignore_eos`."""
        subject: dict[str, Any] = (
            {"prompt": prompt}
            if self.api == "completions"
            else {"messages": [{"role": "user", "content": prompt}]}
        )
        return subject | {
            "model": self.model,
            "max_tokens": self.new_tokens,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
        }


@dataclass
class Answer:
    """What became of a request. Times are of `time.monotonic`, which all processes of a machine
    share.

    Attributes:
        pieces: when each piece of text came.
        end: of the last event that belongs to the answer, or of the failure.
        tokens, prompt_tokens: the server's count; -1 if it gave none.
        detail: what the server said, if it failed.
    """

    start: float
    end: float = 0.0
    pieces: list[float] = field(default_factory=list)
    tokens: int = -1
    prompt_tokens: int = -1
    status: str = OK
    detail: str = ""
    finished: bool = False


async def ask(session: aiohttp.ClientSession, service: Service, prompt: str) -> Answer:
    """Send a request and read its answer to the end; a failure of any kind is a status, not an
    exception."""
    answer = Answer(start=time.monotonic())
    try:
        async with (
            asyncio.timeout(service.timeout_s),
            session.post(
                service.url + PATHS[service.api], json=service.body(prompt), headers=service.headers
            ) as response,
        ):
            if response.status != 200:
                answer.status = f"http {response.status}"
                answer.detail = (await response.text(errors="replace"))[:LONGEST_DETAIL]
            else:
                await _read(response, answer)
    except TimeoutError:
        answer.status = "timeout"
    except aiohttp.ClientPayloadError:
        answer.status = "cut"
    except (aiohttp.ClientError, OSError) as error:
        answer.status = "cut" if answer.pieces else "connection"
        answer.detail = str(error)
    if answer.status == OK and not answer.finished:
        answer.status = "cut"
    if answer.status != OK or not answer.end:
        answer.end = time.monotonic()
    return answer


async def _read(response: aiohttp.ClientResponse, answer: Answer) -> None:
    rest = b""
    async for data in response.content.iter_any():
        now = time.monotonic()
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                _take(line[5:].strip(), now, answer)


def _take(event: bytes, now: float, answer: Answer) -> None:
    """One server-sent event of the answer."""
    if event == b"[DONE]":
        answer.finished = True
        return
    try:
        value = json.loads(event)
    except ValueError:
        answer.status = "server error"
        answer.detail = event[:LONGEST_DETAIL].decode(errors="replace")
        return
    if value.get("error"):
        answer.status = "server error"
        answer.detail = str(value["error"])[:LONGEST_DETAIL]
        return
    usage = value.get("usage")
    if usage:
        answer.tokens = usage.get("completion_tokens", -1)
        answer.prompt_tokens = usage.get("prompt_tokens", -1)
    for choice in value.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or delta.get("content") or delta.get("reasoning_content"):
            answer.pieces.append(now)
        if choice.get("finish_reason"):
            answer.finished = True
        answer.end = now
