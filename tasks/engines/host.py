"""The engine's side of `tasks.engines.process`: `python -m tasks.engines.host DESCRIPTOR`.

Loads one engine and answers one request after the other until it is told to close or its parent is
gone.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from configs.errors import EngineError, LmflowsError
from tasks.engines import module_of, wire
from tasks.engines.protocol import Engine, EngineSpec
from tasks.runner.step import versions

Answer = tuple[Mapping[str, Any], wire.Arrays]


def main() -> None:
    channel = Connection(int(sys.argv[1]))
    host = Host()
    while True:
        try:
            message, arrays = wire.receive(channel)
        except (EOFError, OSError):
            break
        if message["do"] == "close":
            break
        wire.send(channel, *host.answer(message, arrays))
    sys.stdout.flush()
    sys.stderr.flush()
    # TurboMind's threads and its destructors at exit take their time, and the kernel frees the
    # memory anyway
    os._exit(0)


class Host:
    """The engine once it is loaded, and its answers."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._name = ""

    def answer(self, message: Mapping[str, Any], arrays: wire.Arrays) -> Answer:
        """The answer to a request; an error is one, too, and leaves the engine usable."""
        try:
            if message["do"] == "load":
                return self._load(EngineSpec.model_validate(message["spec"]))
            assert self._engine is not None
            return OPERATIONS[message["do"]](self._engine, message, arrays)
        except LmflowsError as error:
            return {"error": error.to_dict()}, {}
        except Exception as error:
            traceback.print_exc()
            told = EngineError(
                f"{type(error).__name__}: {error}",
                where=f"engine {self._name}, asked to {message['do']}",
            )
            return {"error": told.to_dict()}, {}

    def _load(self, spec: EngineSpec) -> Answer:
        self._name = spec.engine.name
        module = module_of(spec.engine)
        self._engine = module.load(spec)
        loaded = {
            "load_seconds": self._engine.load_seconds,
            "vocabulary": self._engine.vocabulary,
            "versions": versions(module.LIBRARIES),
        }
        return loaded, {}


def _prompt_ids(engine: Engine, message: Mapping[str, Any], _arrays: wire.Arrays) -> Answer:
    return {"ids": engine.prompt_ids(message["messages"], message.get("tools"))}, {}


def _encode(engine: Engine, message: Mapping[str, Any], _arrays: wire.Arrays) -> Answer:
    return {"ids": engine.encode(message["record"])}, {}


def _generate(engine: Engine, message: Mapping[str, Any], _arrays: wire.Arrays) -> Answer:
    answers = engine.generate(message["prompts"], message["max_new_tokens"], exact=message["exact"])
    return {"answers": [dataclasses.asdict(answer) for answer in answers]}, {}


def _score(engine: Engine, message: Mapping[str, Any], arrays: wire.Arrays) -> Answer:
    sequences = message["sequences"]
    at = [arrays[str(number)] for number in range(len(sequences))] if arrays else None
    found = engine.score(sequences, at)
    return {}, {
        f"{name}.{number}": getattr(scores, name)
        for number, scores in enumerate(found)
        for name in ("nll", "top", "ids", "logprobs")
    }


OPERATIONS: Mapping[str, Callable[[Engine, Mapping[str, Any], wire.Arrays], Answer]] = {
    "prompt_ids": _prompt_ids,
    "encode": _encode,
    "generate": _generate,
    "score": _score,
}


if __name__ == "__main__":
    main()
