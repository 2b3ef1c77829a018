"""An OpenAI-compatible server over the reference engine: `python -m tasks.engines.server ENDPOINT`.

`transformers serve` (4.57) was tried first: when its generation raises, the client waits for ever, because its
streamer's queue has no end; it also answers only as a stream. So this thin app: one generation at a time, in a thread;
whatever fails there reaches the client as an error; a client that leaves ends its generation.

Paths as LMDeploy's api_server has them: /health, /v1/models, /v1/chat/completions, /v1/completions, /get_ppl.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Literal

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from transformers import StoppingCriteria
from transformers.generation.streamers import TextStreamer

from configs.schema import DeployTransformers
from tasks import endpoints
from tasks.engines.reference import ReferenceEngine


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: str
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class StreamOptions(BaseModel):
    include_usage: bool = False


class Sampling(BaseModel):
    """What both kinds of completion take. A field left out follows the model's generation_config.json."""

    model: str
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Literal[1] = 1


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


class _ToQueue(TextStreamer):
    """Hands decoded text to a function as soon as it can no longer change."""

    def __init__(self, tokenizer: Any, put: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.hand_on = put

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.hand_on(text)


class _Gone(StoppingCriteria):
    """Ends a generation whose client has left."""

    def __init__(self, left: threading.Event) -> None:
        self.left = left

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.left.is_set(), dtype=torch.bool, device=input_ids.device)


class Finished(BaseModel):
    """The end of a generation: why, and how many tokens."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
                "total_tokens": self.prompt_tokens + self.completion_tokens}


class Service:
    """The engine behind the app. One thread does the work, so requests wait their turn."""

    def __init__(self, engine: ReferenceEngine, session_len: int) -> None:
        self.engine, self.session_len = engine, session_len
        self.worker = ThreadPoolExecutor(1)

    async def generate(self, prompt: list[int], sampling: Sampling) -> AsyncIterator[str | Finished]:
        """Pieces of text, then how it ended. An exception in the generating thread is raised here."""
        room = self.session_len - len(prompt)
        if room < 1:
            raise Refused(400, f"the prompt has {len(prompt)} tokens, this server takes {self.session_len} with the answer")
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | Finished | BaseException]()
        left = threading.Event()

        def put(item: str | Finished | BaseException) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, item)

        def work() -> None:
            try:
                put(self._run(prompt, sampling, room, put, left))
            except BaseException as error:  # noqa: BLE001 (whatever it is, the client must hear of it)
                put(error)

        self.worker.submit(work)
        try:
            while not isinstance(item := await pieces.get(), Finished):
                if isinstance(item, BaseException):
                    raise item
                yield item
            yield item
        finally:
            left.set()

    def _run(self, prompt: list[int], sampling: Sampling, room: int, put: Callable[[str], None], left: threading.Event) -> Finished:
        limit = min(sampling.max_completion_tokens or sampling.max_tokens or room, room)
        options = self.engine.generation_options(limit) | _sampling_options(sampling)
        if sampling.stop:
            options |= {"stop_strings": sampling.stop, "tokenizer": self.engine.tokenizer}
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        with torch.inference_mode():
            output = self.engine.model.generate(**self.engine.inputs(prompt), **options, streamer=_ToQueue(self.engine.tokenizer, put),
                                                stopping_criteria=[_Gone(left)])
        new = output[0, len(prompt):].tolist()
        complete = len(new) < limit or new[-1] in self.engine.end_ids
        return Finished(reason="stop" if complete else "length", prompt_tokens=len(prompt), completion_tokens=len(new))

    async def score(self, ids: list[int]) -> float:
        """Mean negative log-likelihood of ids 1..n-1, in nats."""
        if not 2 <= len(ids) <= self.session_len:
            raise Refused(400, f"{len(ids)} tokens; this server scores 2 to {self.session_len}")
        if not all(0 <= index < self.engine.model.config.vocab_size for index in ids):
            raise Refused(400, "a token id is not in the vocabulary")
        scores = await asyncio.get_running_loop().run_in_executor(self.worker, lambda: self.engine.score([ids]))
        return float(scores[0].mean())


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
    async def authorize(request: Request, call_next: Any) -> Any:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if keys and request.url.path != "/health" and not any(secrets.compare_digest(given.encode(), key.encode()) for key in keys):
            return _error(401, "invalid API key")
        return await call_next(request)

    app.add_exception_handler(RequestValidationError, lambda _, error: _error(400, _first(error)))
    app.add_exception_handler(HTTPException, lambda _, error: _error(error.status_code, error.detail))  # type: ignore[attr-defined]
    app.add_exception_handler(Refused, lambda _, error: _error(error.status, str(error)))  # type: ignore[attr-defined]
    app.add_exception_handler(Exception, lambda _, error: _error(500, f"{type(error).__name__}: {error}"))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": model_name, "object": "model", "created": created, "owned_by": "lmdeploy-flows"}]}

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest) -> Any:
        try:
            prompt = service.engine.prompt_ids([message.plain() for message in body.messages])
        except Exception as error:  # templates raise what their authors chose, for roles in a wrong order for example
            raise Refused(400, f"the chat template refuses these messages: {error}") from error
        return await _answer(service, prompt, body, model_name, chat=True)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest) -> Any:
        prompt = body.prompt if isinstance(body.prompt, list) else service.engine.tokenizer(body.prompt).input_ids
        if not prompt:
            raise Refused(400, "the prompt is empty")
        return await _answer(service, prompt, body, model_name, chat=False)

    @app.post("/get_ppl")
    async def get_ppl(body: ScoreRequest) -> dict[str, float]:
        ids = body.input if isinstance(body.input, list) else service.engine.tokenizer(body.input).input_ids
        return {"ppl": await service.score(ids)}  # LMDeploy's name for the mean cross-entropy

    return app


async def _answer(service: Service, prompt: list[int], body: Sampling, model_name: str, *, chat: bool) -> Any:
    if body.model != model_name:
        raise Refused(404, f"no model {body.model!r}; this server has {model_name!r}")
    head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_name}
    pieces = service.generate(prompt, body)
    if body.stream:
        first = await anext(pieces)  # an error before the first word is an HTTP status, not a broken stream
        return StreamingResponse(_events(first, pieces, head, body, chat=chat), media_type="text/event-stream")
    text = ""
    async for piece in pieces:
        if isinstance(piece, Finished):
            content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            return head | {"object": "chat.completion" if chat else "text_completion", "usage": piece.usage,
                           "choices": [{"index": 0, "finish_reason": piece.reason, "logprobs": None} | content]}
        text += piece
    raise RuntimeError("the generation ended without saying how")


async def _events(first: str | Finished, pieces: AsyncIterator[str | Finished], head: dict[str, Any], body: Sampling, *,
                  chat: bool) -> AsyncIterator[str]:
    """Server-sent events of a completion; a failure in the middle is an error event, then the end."""
    kind = "chat.completion.chunk" if chat else "text_completion"

    def event(content: dict[str, Any], reason: str | None = None, **more: Any) -> str:
        part = {"delta": content} if chat else {"text": content.get("content", "")}
        return _sse(head | {"object": kind, "choices": [{"index": 0, "finish_reason": reason} | part]} | more)

    async with aclosing(pieces):  # type: ignore[type-var]
        try:
            if chat:
                yield event({"role": "assistant", "content": ""})
            piece: str | Finished | None = first
            while not isinstance(piece, Finished):
                yield event({"content": piece})
                piece = await anext(pieces)
            yield event({}, piece.reason)
            if body.stream_options.include_usage:
                yield _sse(head | {"object": kind, "choices": [], "usage": piece.usage})
        except Exception as error:  # noqa: BLE001
            yield _sse({"error": {"message": f"{type(error).__name__}: {error}", "type": "server_error", "code": 500}})
        yield "data: [DONE]\n\n"


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _error(status: int, message: str) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status_code=status)


def _first(error: Any) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(str(part) for part in problem['loc'][1:])}: {problem['msg']}"


def main() -> None:
    endpoint = endpoints.one(sys.argv[1])
    options = endpoint.options
    assert isinstance(options, DeployTransformers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = ReferenceEngine(endpoint.artifact.path, device=device, trust_remote_code=endpoint.trust_remote_code)
    limit = getattr(engine.model.config, "max_position_embeddings", options.session_len)
    app = build_app(Service(engine, min(options.session_len, limit)), endpoint.model_name, endpoint.keys())
    uvicorn.run(app, host=options.host, port=options.port, log_level="info", timeout_graceful_shutdown=5)


if __name__ == "__main__":
    main()
