"""A sweep of loads on one server."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from artifacts.records.load_results import Load, LoadResult
from tasks.load.environment import Watch
from tasks.load.metrics import summarize
from tasks.load.pool import Pool
from tasks.load.target import Server

Progress = Callable[[float, str], None]


def default_processes() -> int:
    """Half the cores that this process may use, 1 to 8: a server on the same machine needs the
    others."""
    return min(8, max(1, len(os.sched_getaffinity(0)) // 2))


def run_loads(
    server: Server, loads: Sequence[Load], progress: Progress = lambda _done, _text: None
) -> tuple[LoadResult, ...]:
    """Put a server under each of the loads, one after the other, each after its own warm-up.

    Args:
        progress: is told a fraction and a few words before each load.

    Raises:
        EndpointError: the server answers no request.
        LoadClientDied: a process of the load generator ended.
    """
    results = []
    with Pool(max(load.processes for load in loads)) as pool:
        known = pool.count_words(server.service(loads[0]), loads[0].seed)
        for number, load in enumerate(loads):
            words, service = known.words(load.prompt_tokens), server.service(load)
            progress(number / len(loads), f"{load.name}: warm-up")
            warmup = pool.warm_up(service, load, words)
            progress((number + 0.2) / len(loads), load.name)
            with Watch(server.target.url, server.engine, server.gpus) as watch:
                since = datetime.now(UTC)
                # another seed each: a prompt of an earlier load would be in the server's prefix
                # cache
                measured = pool.run(
                    service, load.model_copy(update={"seed": load.seed + 1000 * number}), words
                )
            results.append(
                summarize(load, server.target, measured, warmup, watch.environment(), since)
            )
    return tuple(results)
