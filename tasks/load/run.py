"""A sweep of loads on one server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime

from artifacts.records.load_results import Load, LoadResult, loads_of
from configs.callbacks import Progress, no_progress
from configs.load_testing import LoadTest
from tasks.load.environment import Watch
from tasks.load.metrics import summarize
from tasks.load.pool import Pool
from tasks.load.target import Server

SEEDS_OF_A_LOAD = 1000  # between the seed of one load and that of the next


def default_processes() -> int:
    """Half the cores that this process may use, 1 to 8: a server on the same machine needs the
    others."""
    return min(8, max(1, len(os.sched_getaffinity(0)) // 2))


def run_sweep(
    server: Server, config: LoadTest, progress: Progress = no_progress
) -> tuple[LoadResult, ...]:
    """Put a server under all loads that a config names (`run_loads`)."""
    return run_loads(server, loads_of(config, config.processes or default_processes()), progress)


def run_loads(
    server: Server, loads: Sequence[Load], progress: Progress = no_progress
) -> tuple[LoadResult, ...]:
    """Put a server under each of the loads, one after the other, each after its own warm-up.

    Raises:
        EndpointError: the server answers no request.
        LoadClientDied: a process of the load generator ended.
    """
    results = []
    with Pool(max(load.processes for load in loads)) as pool:
        known = pool.count_words(server.service(loads[0]), loads[0].seed)
        for number, load in enumerate(loads):
            words = known.words(load.prompt_tokens)
            service = server.service(load)
            progress(number / len(loads), f"{load.name}: warm-up")
            warmup = pool.warm_up(service, load, words)
            progress((number + 0.2) / len(loads), load.name)
            with Watch(server.target.url, server.engine, server.gpus) as watch:
                since = datetime.now(UTC)
                # a prompt of an earlier load would be in the server's prefix cache
                seed = load.seed + SEEDS_OF_A_LOAD * number
                measured = pool.run(service, load.model_copy(update={"seed": seed}), words)
            results.append(
                summarize(load, server.target, measured, warmup, watch.environment(), since)
            )
    return tuple(results)
