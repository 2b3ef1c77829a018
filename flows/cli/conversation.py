"""A conversation with an endpoint in the terminal: streamed, with history, through the `openai`
client."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass

import openai
from openai.types.chat import ChatCompletionMessageParam
from rich.console import Console

from configs.errors import EndpointError
from tasks.serving.endpoints import Endpoint


@dataclass(frozen=True)
class Manner:
    """How a conversation is held. `timing`: tell tokens and seconds of each answer."""

    system: str | None = None
    temperature: float = 0.0
    max_tokens: int = 512
    timing: bool = False


def converse(
    console: Console, manner: Manner, *, endpoint: Endpoint | None, url: str | None = None
) -> None:
    """Read prompts from stdin until it ends, and print the answers as they come.

    Args:
        endpoint: whom to talk to; without one `url` is any OpenAI-compatible server.

    Raises:
        EndpointError: the server is not there, or refuses.
    """
    base = url or (endpoint.url + "/v1" if endpoint else "")
    keys = endpoint.keys() if endpoint else []
    client = openai.OpenAI(
        base_url=base,
        api_key=keys[0] if keys else os.environ.get("OPENAI_API_KEY", "none"),
        max_retries=0,
        # no proxy finds what is on this machine
        http_client=openai.DefaultHttpxClient(trust_env=endpoint is None),
    )
    start: list[ChatCompletionMessageParam] = []
    if manner.system:
        start.append({"role": "system", "content": manner.system})
    messages = list(start)
    try:
        model = endpoint.model_name if endpoint else client.models.list().data[0].id
        if sys.stdin.isatty():
            console.print(
                f"[dim]{model} at {base}; an empty line ends, /new starts over[/]", highlight=False
            )
        while (prompt := _read()) is not None:
            if prompt == "/new":
                messages = list(start)
                continue
            messages.append({"role": "user", "content": prompt})
            answer = _answer(client, model, messages, manner)
            messages.append({"role": "assistant", "content": answer})
    except openai.APIConnectionError as error:
        raise EndpointError(
            "does not answer", where=base, hint="`lmflows status` tells whether it runs"
        ) from error
    except openai.APIError as error:
        raise EndpointError(
            str(error), where=base, hint="`lmflows logs` shows what the server says"
        ) from error


def _read() -> str | None:
    """The next prompt; None at the end of the input or at an empty line."""
    try:
        line = input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
    return line.strip() or None


def _answer(
    client: openai.OpenAI, model: str, messages: list[ChatCompletionMessageParam], manner: Manner
) -> str:
    text = ""
    tokens = 0
    first = 0.0  # seconds until the first piece
    started = time.monotonic()
    with (
        contextlib.suppress(KeyboardInterrupt),
        client.chat.completions.create(
            model=model,
            messages=messages,
            temperature=manner.temperature,
            max_tokens=manner.max_tokens,
            stream=True,
            stream_options={"include_usage": True},
        ) as stream,
    ):
        for chunk in stream:
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                first = first or time.monotonic() - started
                text += piece
                print(piece, end="", flush=True)
    print(flush=True)
    if manner.timing:
        seconds = time.monotonic() - started
        print(
            f"[{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.1f} tokens/s, first after"
            f" {first:.2f} s]",
            flush=True,
        )
    return text
