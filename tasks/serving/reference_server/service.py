"""The engine behind the app: one thread does the work, so requests wait their turn. Knows nothing
of HTTP but the status of what it refuses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from pydantic import BaseModel

from tasks.engines.reference import ReferenceEngine
from tasks.serving.reference_server.requests import Refused, Sampling
from tasks.serving.reference_server.streamer import Ends, TextStreamer


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
    """Generates and scores with a loaded model.

    Args:
        session_len: most tokens of prompt and answer together.
    """

    def __init__(self, engine: ReferenceEngine, session_len: int) -> None:
        self.engine = engine
        self.session_len = session_len
        self.worker = ThreadPoolExecutor(1)

    async def generate(
        self, prompt: list[int], sampling: Sampling
    ) -> AsyncGenerator[str | Finished]:
        """Pieces of text, then how it ended. An exception in the generating thread is raised
        here."""
        self._require_room(prompt)
        self._require_known(prompt)
        loop = asyncio.get_running_loop()
        pieces = asyncio.Queue[str | Finished | BaseException]()
        left = threading.Event()

        def put(item: str | Finished | BaseException) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, item)

        def work() -> None:
            try:
                put(self._run(prompt, sampling, put, left))
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
        put: Callable[[str], None],
        left: threading.Event,
    ) -> Finished:
        room = self.session_len - len(prompt)
        limit = min(sampling.max_completion_tokens or sampling.max_tokens or room, room)
        options = self.engine.generation_options(limit) | _sampling_options(sampling)
        if sampling.ignore_eos:
            options |= {"min_new_tokens": limit, "eos_token_id": None}
        text = TextStreamer(self.engine.tokenizer, sampling.stops, put)
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        with torch.inference_mode():
            output = self.engine.model.generate(
                **self.engine.inputs(prompt),
                **options,
                streamer=text,
                stopping_criteria=[Ends(text, left)],
            )
        new = output[0, len(prompt) :].tolist()
        ended = bool(new) and new[-1] in self.engine.end_ids and not sampling.ignore_eos
        complete = text.stopped or len(new) < limit or ended
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

    def _require_room(self, prompt: list[int]) -> None:
        if len(prompt) >= self.session_len:
            raise Refused(
                400,
                f"the prompt has {len(prompt)} tokens, this server takes {self.session_len} with"
                " the answer",
            )

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
