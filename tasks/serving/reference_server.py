"""An OpenAI-compatible server over the reference engine: `python -m tasks.serving.reference_server
RECORD`.

`transformers serve` (4.57) was tried first: when its generation raises, the client waits for ever,
because its streamer's queue has no end; it also answers only as a stream. So this thin app: one
generation at a time, in a thread; whatever fails there reaches the client as an error; a client
that leaves ends its generation.

Paths as LMDeploy's api_server has them: /health, /v1/models, /v1/chat/completions, /v1/completions,
/get_ppl.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import sys
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from tasks.engines.protocol import EngineSpec
from tasks.engines.reference import ReferenceEngine
from tasks.engines.transformers import load
from tasks.serving import endpoints

LOG = logging.getLogger("uvicorn.error")
T = TypeVar("T")
StopString = Annotated[str, Field(min_length=1)]


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: str
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        text = (
            self.content
            if isinstance(self.content, str)
            else "".join(part.text for part in self.content)
        )
        return {"role": self.role, "content": text}


class StreamOptions(BaseModel):
    include_usage: bool = False


class Sampling(BaseModel):
    """What both kinds of completion take. A field left out follows the model's
    generation_config.json."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: StopString | list[StopString] | None = None
    n: Literal[1] | None = None
    ignore_eos: bool | None = None  # as LMDeploy has it: go on to max_tokens

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ChatRequest(Sampling):
    messages: list[Message] = Field(min_length=1)


class CompletionRequest(Sampling):
    prompt: str | list[int]


class ScoreRequest(BaseModel):
    input: str | list[int]


class Refused(Exception):
    """A request that cannot be served, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Text(BaseStreamer):
    """Decodes an answer token by token and hands its text on as soon as it can no longer change, up
    to a stop string.

    transformers' TextStreamer forgets all tokens at a line's end, and tokenizers that drop a
    leading space then eat one space of the next line's indentation; here each token is decoded
    together with the ones before it.
    """

    def __init__(self, tokenizer: Any, stops: list[str], hand_on: Callable[[str], None]) -> None:
        self.tokenizer, self.stops, self.hand_on = tokenizer, stops, hand_on
        self.ids: list[int] = []
        # ids[start:done] are handed on, and kept as context for the next ones
        self.start = self.done = 0
        self.held = ""  # may become a stop string
        self.prompt_seen = self.stopped = False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            self.ids += value.flatten().tolist()
            self._decode()
        self.prompt_seen = True

    def end(self) -> None:
        self._decode(end=True)

    def _decode(self, *, end: bool = False) -> None:
        before, text = (
            self.tokenizer.decode(ids, skip_special_tokens=True)
            for ids in (self.ids[self.start : self.done], self.ids[self.start :])
        )
        # that is a character whose other bytes are to come
        if end or (len(text) > len(before) and not text.endswith("\ufffd")):
            self.start, self.done = self.done, len(self.ids)
            self._emit(text[len(before) :], end)

    def _emit(self, text: str, end: bool) -> None:
        if self.stopped:
            return
        text = self.held + text
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        self.stopped = bool(found)
        known = (
            min(found)
            if found
            else (
                len(text)
                if end
                else len(text)
                - max(
                    (
                        length
                        for stop in self.stops
                        for length in range(1, len(stop))
                        if text.endswith(stop[:length])
                    ),
                    default=0,
                )
            )
        )
        self.held = text[known:]
        if known:
            self.hand_on(text[:known])


class _Ends(StoppingCriteria):
    """Ends a generation whose text has come to a stop string, or whose client has left."""

    def __init__(self, text: _Text, left: threading.Event) -> None:
        self.text, self.left = text, left

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> Any:
        return torch.full(
            (input_ids.shape[0],),
            self.text.stopped or self.left.is_set(),
            dtype=torch.bool,
            device=input_ids.device,
        )


class Finished(BaseModel):
    """The end of a generation: why, and how many tokens."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Service:
    """The engine behind the app. One thread does the work, so requests wait their turn."""

    def __init__(self, engine: ReferenceEngine, session_len: int) -> None:
        self.engine, self.session_len = engine, session_len
        self.worker = ThreadPoolExecutor(1)

    async def generate(
        self, prompt: list[int], sampling: Sampling
    ) -> AsyncGenerator[str | Finished]:
        """Pieces of text, then how it ended. An exception in the generating thread is raised
        here."""
        room = self.session_len - len(prompt)
        if room < 1:
            raise Refused(
                400,
                f"the prompt has {len(prompt)} tokens, this server takes {self.session_len} with"
                " the answer",
            )
        self._require_known(prompt)
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | Finished | BaseException]()
        left = threading.Event()

        def put(item: str | Finished | BaseException) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, item)

        def work() -> None:
            try:
                put(self._run(prompt, sampling, room, put, left))
            except BaseException as error:
                put(error)

        job = self.worker.submit(work)
        try:
            while not isinstance(item := await pieces.get(), Finished):
                if isinstance(item, BaseException):
                    raise item
                yield item
            yield item
        finally:
            left.set()
            job.cancel()  # if it still waits for its turn

    def _run(
        self,
        prompt: list[int],
        sampling: Sampling,
        room: int,
        put: Callable[[str], None],
        left: threading.Event,
    ) -> Finished:
        limit = min(sampling.max_completion_tokens or sampling.max_tokens or room, room)
        options = self.engine.generation_options(limit) | _sampling_options(sampling)
        if sampling.ignore_eos:
            options |= {"min_new_tokens": limit, "eos_token_id": None}
        text = _Text(self.engine.tokenizer, sampling.stops, put)
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        with torch.inference_mode():
            output = self.engine.model.generate(
                **self.engine.inputs(prompt),
                **options,
                streamer=text,
                stopping_criteria=[_Ends(text, left)],
            )
        new = output[0, len(prompt) :].tolist()
        complete = (
            text.stopped
            or len(new) < limit
            or (new[-1] in self.engine.end_ids and not sampling.ignore_eos)
        )
        return Finished(
            reason="stop" if complete else "length",
            prompt_tokens=len(prompt),
            completion_tokens=len(new),
        )

    async def score(self, ids: list[int]) -> float:
        """Mean negative log-likelihood of ids 1..n-1, in nats."""
        if not 2 <= len(ids) <= self.session_len:
            raise Refused(400, f"{len(ids)} tokens; this server scores 2 to {self.session_len}")
        self._require_known(ids)
        scores = await asyncio.get_running_loop().run_in_executor(
            self.worker, lambda: self.engine.score([ids])
        )
        return float(scores[0].nll.mean())

    def _require_known(self, ids: list[int]) -> None:
        """An unknown id would fail inside the model, and on a GPU take the whole process with
        it."""
        if not all(0 <= index < self.engine.model.config.vocab_size for index in ids):
            raise Refused(400, "a token id is not in the vocabulary")


def _sampling_options(sampling: Sampling) -> dict[str, Any]:
    if sampling.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    given = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    given = {name: value for name, value in given.items() if value is not None}
    return given | ({"do_sample": True} if given else {})


def build_app(service: Service, model_name: str, keys: list[str]) -> FastAPI:
    """The app over a service; `keys` are the accepted API keys, none for an open server."""
    app = FastAPI(title="lmdeploy-flows reference server", docs_url=None, redoc_url=None)
    created = int(time.time())

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Any:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if (
            keys
            and request.url.path != "/health"
            and not any(secrets.compare_digest(given.encode(), key.encode()) for key in keys)
        ):
            return _error(401, "invalid API key")
        try:
            return await call_next(request)
        except Exception as error:
            # not left to uvicorn: it answers, and then cuts the connection that the client will use
            # again
            return _error(500, _failure(error))

    app.add_exception_handler(RequestValidationError, lambda _, error: _error(400, _first(error)))
    app.add_exception_handler(
        HTTPException, lambda _, error: _error(error.status_code, error.detail)
    )
    app.add_exception_handler(Refused, lambda _, error: _error(error.status, str(error)))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [
                {
                    "id": model_name,
                    "object": "model",
                    "created": created,
                    "owned_by": "lmdeploy-flows",
                }
            ],
        }

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Any:
        try:
            prompt = service.engine.prompt_ids([message.plain() for message in body.messages])
        except Exception as error:
            # templates raise what their authors chose, for roles in a wrong order for example
            raise Refused(400, f"the chat template refuses these messages: {error}") from error
        return await _answer(service, prompt, body, model_name, request, chat=True)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Any:
        prompt = (
            body.prompt
            if isinstance(body.prompt, list)
            else service.engine.tokenizer(body.prompt).input_ids
        )
        if not prompt:
            raise Refused(400, "the prompt is empty")
        return await _answer(service, prompt, body, model_name, request, chat=False)

    @app.post("/get_ppl")
    async def get_ppl(body: ScoreRequest) -> dict[str, float]:
        ids = (
            body.input
            if isinstance(body.input, list)
            else service.engine.tokenizer(body.input).input_ids
        )
        return {"ppl": await service.score(ids)}  # LMDeploy's name for the mean cross-entropy

    return app


async def _answer(
    service: Service,
    prompt: list[int],
    body: Sampling,
    model_name: str,
    request: Request,
    *,
    chat: bool,
) -> Any:
    if body.model != model_name:
        raise Refused(404, f"no model {body.model!r}; this server has {model_name!r}")
    head = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model_name,
    }
    pieces = service.generate(prompt, body)
    if not body.stream:
        return await _while_connected(request, _whole(pieces, head, chat=chat))
    # an error before the first word is an HTTP status, not a broken stream
    first = await _while_connected(request, anext(pieces))
    return StreamingResponse(
        _events(first, pieces, head, body, chat=chat), media_type="text/event-stream"
    )


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client leaves first."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    task, watcher = asyncio.ensure_future(work), asyncio.create_task(watch())
    try:
        return await task
    except asyncio.CancelledError:
        raise Refused(499, "the client has left") from None
    finally:
        watcher.cancel()


async def _whole(
    pieces: AsyncGenerator[str | Finished], head: dict[str, Any], *, chat: bool
) -> dict[str, Any]:
    """The response of a completion that is not streamed."""
    text = ""
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Finished):
                content = (
                    {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
                )
                return head | {
                    "object": "chat.completion" if chat else "text_completion",
                    "usage": piece.usage,
                    "choices": [
                        {"index": 0, "finish_reason": piece.reason, "logprobs": None} | content
                    ],
                }
            text += piece
    raise RuntimeError("the generation ended without saying how")


async def _events(
    first: str | Finished,
    pieces: AsyncGenerator[str | Finished],
    head: dict[str, Any],
    body: Sampling,
    *,
    chat: bool,
) -> AsyncIterator[str]:
    """Server-sent events of a completion; a failure in the middle is an error event, then the
    end."""
    kind = "chat.completion.chunk" if chat else "text_completion"

    def event(content: dict[str, Any], reason: str | None = None, **more: Any) -> str:
        part = {"delta": content} if chat else {"text": content.get("content", "")}
        return _sse(
            head
            | {"object": kind, "choices": [{"index": 0, "finish_reason": reason} | part]}
            | more
        )

    async with aclosing(pieces):
        try:
            if chat:
                yield event({"role": "assistant", "content": ""})
            piece: str | Finished | None = first
            while not isinstance(piece, Finished):
                yield event({"content": piece})
                piece = await anext(pieces)
            yield event({}, piece.reason)
            if body.stream_options is not None and body.stream_options.include_usage:
                yield _sse(head | {"object": kind, "choices": [], "usage": piece.usage})
        except Exception as error:
            yield _sse(_problem(500, _failure(error)))
        yield "data: [DONE]\n\n"


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse(_problem(status, message), status_code=status)


def _problem(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _failure(error: Exception) -> str:
    """What the client is told of an unforeseen error; the log gets the traceback."""
    LOG.error("a request failed", exc_info=error)
    return f"{type(error).__name__}: {error}"


def _first(error: Any) -> str:
    problem = error.errors()[0]
    return ": ".join(
        filter(None, [".".join(str(part) for part in problem["loc"][1:]), problem["msg"]])
    )


def main() -> None:
    endpoint = endpoints.from_file(Path(sys.argv[1]))
    options = endpoint.options
    engine = load(
        EngineSpec(
            folder=endpoint.artifact.path,
            engine=endpoint.engine,
            trust_remote_code=endpoint.trust_remote_code,
        )
    )
    limits = (
        endpoint.engine.session_len,
        getattr(engine.model.config, "max_position_embeddings", None),
    )
    session_len = min(limit for limit in limits if limit is not None)
    app = build_app(Service(engine, session_len), endpoint.model_name, endpoint.keys())
    uvicorn.run(
        app, host=options.host, port=options.port, log_level="info", timeout_graceful_shutdown=5
    )


if __name__ == "__main__":
    main()
