"""The app: its paths are those that LMDeploy's api_server has, too."""

from __future__ import annotations

import secrets
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from tasks.serving.reference_server.requests import (
    ChatRequest,
    CompletionRequest,
    Refused,
    Sampling,
    ScoreRequest,
)
from tasks.serving.reference_server.responses import (
    Completion,
    error_response,
    failure,
    while_connected,
)
from tasks.serving.reference_server.service import Service


def build_app(service: Service, model_name: str, keys: list[str]) -> FastAPI:
    """The app over a service; `keys` are the accepted API keys, none for an open server."""
    app = FastAPI(title="lmdeploy-flows reference server", docs_url=None, redoc_url=None)
    _answer_errors(app)
    _guard(app, keys)
    _describe(app, model_name)
    _complete(app, service, model_name)
    _score(app, service)
    return app


def _answer_errors(app: FastAPI) -> None:
    app.add_exception_handler(
        RequestValidationError, lambda _, error: error_response(400, _first(error))
    )
    app.add_exception_handler(
        HTTPException, lambda _, error: error_response(error.status_code, error.detail)
    )
    app.add_exception_handler(Refused, lambda _, error: error_response(error.status, str(error)))


def _first(error: Any) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"][1:])
    return ": ".join(filter(None, [place, problem["msg"]]))


def _guard(app: FastAPI, keys: list[str]) -> None:
    def is_known(given: str) -> bool:
        return any(secrets.compare_digest(given.encode(), key.encode()) for key in keys)

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Any:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if keys and request.url.path != "/health" and not is_known(given):
            return error_response(401, "invalid API key")
        try:
            return await call_next(request)
        except Exception as error:
            # not left to uvicorn: it answers, and then cuts the connection that the client will use
            # again
            return error_response(500, failure(error))


def _describe(app: FastAPI, model_name: str) -> None:
    model = {
        "id": model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "lmdeploy-flows",
    }

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}


def _complete(app: FastAPI, service: Service, model_name: str) -> None:
    async def answer(prompt: list[int], body: Sampling, request: Request, *, chat: bool) -> Any:
        if body.model != model_name:
            raise Refused(404, f"no model {body.model!r}; this server has {model_name!r}")
        completion = Completion.begin(model_name, chat=chat)
        pieces = service.generate(prompt, body)
        if not body.stream:
            return await while_connected(request, completion.whole(pieces))
        # an error before the first word is an HTTP status, not a broken stream
        first = await while_connected(request, anext(pieces))
        events = completion.events(first, pieces, with_usage=body.wants_usage)
        return StreamingResponse(events, media_type="text/event-stream")

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Any:
        try:
            prompt = service.engine.prompt_ids([message.plain() for message in body.messages])
        except Exception as error:
            # templates raise what their authors chose, for roles in a wrong order for example
            raise Refused(400, f"the chat template refuses these messages: {error}") from error
        return await answer(prompt, body, request, chat=True)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Any:
        prompt = _ids(service, body.prompt)
        if not prompt:
            raise Refused(400, "the prompt is empty")
        return await answer(prompt, body, request, chat=False)


def _score(app: FastAPI, service: Service) -> None:
    @app.post("/get_ppl")
    async def get_ppl(body: ScoreRequest) -> dict[str, float]:
        # LMDeploy's name for the mean cross-entropy
        return {"ppl": await service.score(_ids(service, body.input))}


def _ids(service: Service, text: str | list[int]) -> list[int]:
    """Token ids, as given or of a text."""
    return text if isinstance(text, list) else list(service.engine.tokenizer(text).input_ids)
