"""How fast an engine is by itself: prefill and decode tokens per second, without a server, a
tokenizer or a queue in between."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from artifacts.records.measurement import Speed
from configs.errors import EngineError
from configs.evaluation import Benchmark
from tasks.engines.protocol import Engine

DECODE_PROMPT = 16  # tokens: so short that reading them takes about as long as one more new token


def speeds(
    engine: Engine, config: Benchmark, saw: Callable[[float, str], None]
) -> tuple[Speed, ...]:
    """Measure every batch size of the config; the rounds go through the batch sizes in turn.

    Raises:
        EngineError: the engine generates another number of tokens than it was asked for.
    """
    rounds: dict[int, tuple[list[float], list[float]]] = {
        size: ([], []) for size in config.batch_sizes
    }
    done, steps = 0, (config.rounds + 1) * len(config.batch_sizes)
    for number in range(-1, config.rounds):  # the first one warms up
        for size, (prefill, decode) in rounds.items():
            saw(
                done / steps,
                f"batch {size},"
                f" {'warming up' if number < 0 else f'round {number + 1}/{config.rounds}'}",
            )
            done += 1
            figures = one_round(engine, config, size, seed=number + 2)
            if number >= 0:
                prefill.append(figures[0])
                decode.append(figures[1])
    return tuple(
        Speed(
            batch_size=size,
            prompt_tokens=config.prompt_tokens,
            new_tokens=config.new_tokens,
            prefill=tuple(prefill),
            decode=tuple(decode),
        )
        for size, (prefill, decode) in rounds.items()
    )


def one_round(engine: Engine, config: Benchmark, size: int, *, seed: int) -> tuple[float, float]:
    """Prefill and decode tokens per second of one batch of random tokens."""
    # new prompts in each round: nothing may come from a prefix cache
    rng = random.Random(f"{seed} {size}")

    def prompts(length: int) -> list[list[int]]:
        return [[rng.randrange(engine.vocabulary) for _ in range(length)] for _ in range(size)]

    prefill = _timed(engine, prompts(config.prompt_tokens), 1)
    decode = _timed(engine, prompts(DECODE_PROMPT), config.new_tokens)
    return size * config.prompt_tokens / prefill, size * config.new_tokens / decode


def _timed(engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
    started = time.perf_counter()
    answers = engine.generate(prompts, new_tokens, exact=True)
    seconds = time.perf_counter() - started
    if any(answer.tokens != new_tokens for answer in answers):
        raise EngineError(
            f"generated {sorted({answer.tokens for answer in answers})} tokens where {new_tokens}"
            " were asked for",
            where="benchmark",
            hint="lower benchmark.prompt_tokens or new_tokens, or raise engine.session_len",
        )
    return seconds
