"""One process of the load generator: `python -m tasks.load.worker`, commands as JSON lines on
stdin, one JSON line each as the answer, and one more when it is ready.

`probe` counts a prompt's tokens, `warm` sends requests that do not count, `run` sends those that do
and leaves the figures in an `.npz` file. It ends with its stdin, and with its parent.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from artifacts.records.load_results import OK
from tasks.load.prompts import prompt, vocabulary
from tasks.load.stream import Answer, Service, ask

HEARTBEAT_SECONDS = 0.01
ENDLESS = 1 << 40  # requests
WARM_ROUNDS = 6
WARM_CHANGE = 0.25  # between the medians of two rounds, of a server that is warm


@dataclass
class Sent:
    """A request that was due, and its answer."""

    number: int
    due: float
    answer: Answer


@dataclass
class Heart:
    """How late the event loop wakes up: the time between what was asked of it and what happened, in
    seconds."""

    lags: list[float] = field(default_factory=list)

    async def beat(self) -> None:
        while True:
            due = time.monotonic() + HEARTBEAT_SECONDS
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self.lags.append(max(0.0, time.monotonic() - due))


class Worker:
    """Keeps one session, so that its connections stay warm from command to command."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def handle(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do what a line asks; the answer's line."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
            )
        service = Service(**command["service"])
        work: dict[str, Callable[[Service, dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "probe": self._probe,
            "warm": self._warm,
            "run": self._run,
        }
        return await work[command["do"]](service, command)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _probe(self, service: Service, command: dict[str, Any]) -> dict[str, Any]:
        answers = [
            await self._ask(service, words, command["seed"], number)
            for number, words in enumerate(command["words"])
        ]
        failed = [answer for answer in answers if answer.status != OK]
        return {
            "counts": [
                (words, answer.prompt_tokens)
                for words, answer in zip(command["words"], answers, strict=True)
                if answer.prompt_tokens >= 0
            ],
            "status": failed[0].status if len(failed) == len(answers) else OK,
            "detail": failed[0].detail if failed else "",
        }

    async def _warm(self, service: Service, command: dict[str, Any]) -> dict[str, Any]:
        """Rounds of requests until two of them in a row take the same time."""
        medians: list[float] = []
        failed = Answer(0)
        for round_number in range(WARM_ROUNDS):
            round_command = command | {
                "requests": max(command["slots"], 3),
                "first": round_number * 1_000_000,
            }
            sent = await self._closed(service, round_command, time.monotonic())
            answers = [request.answer for request in sent]
            seconds = [answer.end - answer.start for answer in answers if answer.status == OK]
            failed = next((answer for answer in answers if answer.status != OK), failed)
            if not seconds:
                break
            medians.append(float(np.median(seconds)))
            if len(medians) > 1 and abs(medians[-1] / medians[-2] - 1) <= WARM_CHANGE:
                return {"medians": medians, "steady": True, "status": OK, "detail": ""}
        return {
            "medians": medians,
            "steady": False,
            "status": failed.status,
            "detail": failed.detail,
        }

    async def _run(self, service: Service, command: dict[str, Any]) -> dict[str, Any]:
        """The measured part: from `start_at`, on the clock that all processes share."""
        vocabulary()
        start_at: float = command["start_at"]
        heart = Heart()
        gc.collect()
        gc.freeze()
        gc.disable()  # a collection stops the event loop for as long as it takes
        try:
            await asyncio.sleep(max(0.0, start_at - time.monotonic()))
            cpu_began = time.process_time()
            wall_began = time.monotonic()
            pulse = asyncio.create_task(heart.beat())
            send = self._open if "arrivals" in command else self._closed
            sent = await send(service, command, start_at)
            pulse.cancel()
            cpu = time.process_time() - cpu_began
            wall = time.monotonic() - wall_began
        finally:
            gc.enable()
        save(command["output"], sent, start_at, heart.lags)
        example = next((request.answer.detail for request in sent if request.answer.detail), "")
        return {"cpu_share": cpu / max(wall, 1e-9), "detail": example, "wall": wall}

    async def _open(self, service: Service, command: dict[str, Any], start_at: float) -> list[Sent]:
        """Send each request when it is due, whatever became of the ones before."""

        async def send(number: int, due: float) -> Sent:
            answer = await self._ask(service, command["words"], command["seed"], number)
            return Sent(number, due, answer)

        running = []
        for number, offset in command["arrivals"]:
            due = start_at + offset
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            running.append(asyncio.create_task(send(number, due)))
        return list(await asyncio.gather(*running))

    async def _closed(
        self, service: Service, command: dict[str, Any], start_at: float
    ) -> list[Sent]:
        """Keep `slots` requests in flight until `requests` are sent or `duration` is over."""
        sent: list[Sent] = []
        count: int = command["requests"] or ENDLESS
        numbers = iter(range(command["first"], command["first"] + count))
        last = start_at + (command.get("duration") or float("inf"))

        async def slot() -> None:
            due = start_at
            while time.monotonic() < last:
                number = next(numbers, None)
                if number is None:
                    return
                answer = await self._ask(service, command["words"], command["seed"], number)
                sent.append(Sent(number, due, answer))
                due = answer.end

        await asyncio.gather(*(slot() for _ in range(command["slots"])))
        return sent

    async def _ask(self, service: Service, words: int, seed: int, number: int) -> Answer:
        assert self._session is not None
        return await ask(self._session, service, prompt(words, seed=seed, number=number))


def save(path: str, sent: list[Sent], start_at: float, lags: list[float]) -> None:
    """The figures of a run, one entry a request; `gaps` are those between its pieces of text, all
    requests' in a row."""
    answers = [request.answer for request in sent]
    gaps = [np.diff(answer.pieces) for answer in answers]
    np.savez(
        path,
        number=np.array([request.number for request in sent], np.int64),
        start=np.array([answer.start - start_at for answer in answers]),
        lag=np.array([request.answer.start - request.due for request in sent]),
        ttft=np.array(
            [answer.pieces[0] - answer.start if answer.pieces else np.nan for answer in answers]
        ),
        e2e=np.array([answer.end - answer.start for answer in answers]),
        tokens=np.array([answer.tokens for answer in answers], np.int64),
        prompt_tokens=np.array([answer.prompt_tokens for answer in answers], np.int64),
        chunks=np.array([len(answer.pieces) for answer in answers], np.int64),
        status=np.array([answer.status for answer in answers], "U32"),
        gap_counts=np.array([len(gap) for gap in gaps], np.int64),
        gaps=np.concatenate([*gaps, np.empty(0)]).astype(np.float32),
        heartbeat=np.array(lags),
    )


def main() -> None:
    worker = Worker()
    print("{}", flush=True)  # all is imported
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            print(json.dumps(runner.run(worker.handle(json.loads(line)))), flush=True)
        runner.run(worker.close())


if __name__ == "__main__":
    main()
