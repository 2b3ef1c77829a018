"""What clients get: a completion whole or as server-sent events, and errors in OpenAI's form."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse

from tasks.serving.reference_server.requests import Refused
from tasks.serving.reference_server.service import Finished

LOG = logging.getLogger("uvicorn.error")
T = TypeVar("T")
Pieces = AsyncGenerator[str | Finished]


@dataclass(frozen=True)
class Completion:
    """A completion in OpenAI's form: of a chat, or of a plain text."""

    chat: bool
    head: dict[str, Any]

    @classmethod
    def begin(cls, model: str, *, chat: bool) -> Completion:
        head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        return cls(chat, head)

    async def whole(self, pieces: Pieces) -> dict[str, Any]:
        """The response, once the generation has ended."""
        text = ""
        async with aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, Finished):
                    return self._response(text, piece)
                text += piece
        raise RuntimeError("the generation ended without saying how")

    def _response(self, text: str, end: Finished) -> dict[str, Any]:
        message = {"message": {"role": "assistant", "content": text}}
        choice = {"index": 0, "finish_reason": end.reason, "logprobs": None}
        return self.head | {
            "object": "chat.completion" if self.chat else "text_completion",
            "usage": end.usage,
            "choices": [choice | (message if self.chat else {"text": text})],
        }

    async def events(
        self, first: str | Finished, pieces: Pieces, *, with_usage: bool
    ) -> AsyncIterator[str]:
        """The response as server-sent events, from its first piece on; a failure in the middle is
        an error event, then the end."""
        async with aclosing(pieces):
            try:
                if self.chat:
                    yield self._event({"role": "assistant", "content": ""})
                piece = first
                while not isinstance(piece, Finished):
                    yield self._event({"content": piece})
                    piece = await anext(pieces)
                yield self._event({}, piece.reason)
                if with_usage:
                    yield self._chunk({"choices": [], "usage": piece.usage})
            except Exception as error:
                yield _sse(problem(500, failure(error)))
            yield "data: [DONE]\n\n"

    def _event(self, content: dict[str, Any], reason: str | None = None) -> str:
        part = {"delta": content} if self.chat else {"text": content.get("content", "")}
        return self._chunk({"choices": [{"index": 0, "finish_reason": reason} | part]})

    def _chunk(self, body: dict[str, Any]) -> str:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return _sse(self.head | {"object": kind} | body)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client leaves first."""
    task = asyncio.ensure_future(work)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await task
    except asyncio.CancelledError:
        raise Refused(499, "the client has left") from None
    finally:
        watcher.cancel()


def error_response(status: int, message: str) -> JSONResponse:
    return JSONResponse(problem(status, message), status_code=status)


def problem(status: int, message: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def failure(error: Exception) -> str:
    """What the client is told of an unforeseen error; the log gets the traceback."""
    LOG.error("a request failed", exc_info=error)
    return f"{type(error).__name__}: {error}"


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
