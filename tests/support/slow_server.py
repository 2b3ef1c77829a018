"""An OpenAI-compatible server whose speed is known: `python -m tests.support.slow_server`. It
streams words with delays that it was told.

`/v1/completions` and `/v1/chat/completions` stream; each delay is one of this process alone,
counted from when the request came, so that small errors of sleeping do not add up. One word is one
token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any

from aiohttp import web

from configs.paths import python_path
from tasks.runner.process import Streams, module_command, start


class Server:
    """What the server does to a request, by the options of `main`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.random = options, random.Random(options.seed)
        self.slots: Any = asyncio.Semaphore(options.slots) if options.slots else None
        self.seen: list[dict[str, Any]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        loop, body, options = asyncio.get_running_loop(), await request.json(), self.options
        came = loop.time()
        prompt: str = body.get("prompt") or body["messages"][0]["content"]
        self.seen.append({"prompt": prompt, "ignore_eos": body.get("ignore_eos")})
        if options.key and request.headers.get("Authorization") != f"Bearer {options.key}":
            return web.json_response({"error": {"message": "invalid API key"}}, status=401)
        async with self.slots or nullcontext():
            start = loop.time() if self.slots else came
            fate = self.random.random()
            if fate < options.fail:
                return web.json_response({"error": {"message": "planted failure"}}, status=500)
            factor = options.slowdown * self.random.gauss(1, options.jitter)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            count = min(body["max_tokens"], options.most) if options.most else body["max_tokens"]
            chat = "messages" in body
            for number in range(0, count, options.per_chunk):
                await asyncio.sleep(
                    start + factor * (options.ttft + number * options.tpot) - loop.time()
                )
                text = "word " * min(options.per_chunk, count - number)
                await _send(
                    response, _piece({"delta": {"content": text}} if chat else {"text": text})
                )
                if fate < options.fail + options.cut:
                    assert request.transport is not None
                    request.transport.close()
                    return response
            await _send(response, _piece({"delta": {}} if chat else {"text": ""}, "length"))
            if (body.get("stream_options") or {}).get("include_usage") and not options.no_usage:
                usage = {
                    "prompt_tokens": round(options.tokens_per_word * len(prompt.split())) + 3,
                    "completion_tokens": count,
                }
                await _send(response, {"choices": [], "usage": usage})
            await response.write(b"data: [DONE]\n\n")
            return response

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "slow"}]})

    async def log(self, _request: web.Request) -> web.Response:
        return web.json_response(self.seen)


def _piece(said: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": finish_reason} | said]}


async def _send(response: web.StreamResponse, value: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(value)}\n\n".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft", type=float, default=0.05, help="seconds to the first token")
    parser.add_argument("--tpot", type=float, default=0.005, help="seconds between tokens")
    parser.add_argument("--slowdown", type=float, default=1.0, help="factor on both")
    parser.add_argument(
        "--jitter", type=float, default=0.0, help="standard deviation of a factor of each request"
    )
    parser.add_argument("--fail", type=float, default=0.0, help="share of requests that get a 500")
    parser.add_argument(
        "--cut", type=float, default=0.0, help="share of streams that end after the first piece"
    )
    parser.add_argument("--slots", type=int, default=0, help="requests at a time; 0 for all")
    parser.add_argument("--per-chunk", type=int, default=1, help="tokens in a piece of text")
    parser.add_argument(
        "--most", type=int, default=0, help="most tokens of an answer, whatever is asked"
    )
    parser.add_argument("--no-usage", action="store_true")
    parser.add_argument("--tokens-per-word", type=float, default=1.0)
    parser.add_argument("--key", default="")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    server = Server(options)

    @asynccontextmanager
    async def listening() -> AsyncIterator[web.TCPSite]:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/v1/completions", server.answer)
        app.router.add_post("/v1/chat/completions", server.answer)
        app.router.add_get("/v1/models", server.models)
        app.router.add_get("/log", server.log)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", options.port, backlog=4096)
        await site.start()
        yield site
        await runner.cleanup()

    async def serve() -> None:
        async with listening() as site:
            assert site._server is not None
            print(site._server.sockets[0].getsockname()[1], flush=True)  # type: ignore[attr-defined]
            await asyncio.Event().wait()

    asyncio.run(serve())


@contextmanager
def running(**options: float | str | bool) -> Iterator[str]:
    """A server in a process of its own while the body runs; its URL. Options as `main` has them,
    with underscores."""
    words = [
        word
        for name, value in options.items()
        for word in (
            [f"--{name.replace('_', '-')}"]
            if value is True
            else [f"--{name.replace('_', '-')}", str(value)]
        )
    ]
    process = start(
        module_command("tests.support.slow_server", *words),
        Streams(stdout=subprocess.PIPE, stderr=2),
        environment={"PYTHONPATH": python_path()},
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
