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

from configs.engines import EngineTransformers
from configs.errors import EngineError, LmflowsError
from tasks.engines import wire
from tasks.engines.protocol import Engine, EngineSpec

Answer = tuple[Mapping[str, Any], wire.Arrays]


def main() -> None:
    channel = Connection(int(sys.argv[1]))
    engine: Engine | None = None
    name = ""
    while True:
        try:
            message, arrays = wire.receive(channel)
        except (EOFError, OSError):
            break
        if message["do"] == "close":
            break
        try:
            if message["do"] == "load":
                spec = EngineSpec.model_validate(message["spec"])
                name = spec.engine.name
                engine = load(spec)
                answer: Answer = (
                    {
                        "load_seconds": engine.load_seconds,
                        "vocabulary": engine.vocabulary,
                        "versions": _versions(spec),
                    },
                    {},
                )
            else:
                assert engine is not None
                answer = OPERATIONS[message["do"]](engine, message, arrays)
        except LmflowsError as error:
            answer = {"error": error.to_dict()}, {}
        except Exception as error:
            traceback.print_exc()
            answer = (
                {
                    "error": (
                        EngineError(
                            f"{type(error).__name__}: {error}",
                            where=f"engine {name}, asked to {message['do']}",
                        ).to_dict()
                    )
                },
                {},
            )
        wire.send(channel, *answer)
    sys.stdout.flush()
    sys.stderr.flush()
    # TurboMind's threads and its destructors at exit take their time, and the kernel frees the
    # memory anyway
    os._exit(0)


def load(spec: EngineSpec) -> Engine:
    """Load the engine in this process.

    Raises:
        EngineError: it is not available, or refuses the model.
    """
    if isinstance(spec.engine, EngineTransformers):
        import torch

        from tasks.engines.reference import ReferenceEngine

        return ReferenceEngine(
            spec.folder,
            dtype=getattr(torch, spec.engine.dtype),
            trust_remote_code=spec.trust_remote_code,
        )
    from tasks.engines.lmdeploy import LmdeployEngine

    return LmdeployEngine(spec)


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


def _versions(spec: EngineSpec) -> dict[str, str]:
    from tasks.runner.step import versions

    engine = () if isinstance(spec.engine, EngineTransformers) else ("lmdeploy",)
    return versions((*engine, "torch", "transformers"))


if __name__ == "__main__":
    main()
