"""Whether a run says something about the server: what makes it invalid, and what the reader of a
valid one should know.

Most of it is about the client: a generator that is late measures its own queue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from artifacts.records.load_results import (
    OK,
    ClientHealth,
    GpuState,
    Load,
    LoadResult,
    Percentiles,
    Rows,
)
from tasks.load.intervals import plain_lag, requests_needed, weighted_lag
from tasks.load.pool import Measured
from tasks.load.worker import HEARTBEAT_SECONDS

# of one core, of a process of the client: beyond it, its own queue is part of what it measures
BUSY_CPU = 0.9
BUSY_MACHINE = 0.95
THROTTLED = 0.05
GROWTH = 1.5  # of the time to answer, from the first third of a run to the last
FEWEST_PER_THIRD = 5
TOKENS_PER_PIECE = 0.1  # how far from 1 without a note


def problems_of(result: LoadResult) -> tuple[str, ...]:
    """Why a result says less about the server than about something else."""
    found = [
        *client_problems(result.client, result.load.max_lag_seconds),
        *error_problems(result.errors, len(result.rows.status), result.load),
    ]
    if not result.warmup.steady:
        medians = ", ".join(f"{median:.3f}" for median in result.warmup.medians)
        found.append(f"the warm-up never became steady: median seconds of its rounds {medians}")
    if result.e2e.count < requests_needed(50):
        found.append(
            f"{result.e2e.count} answers do not even bound the median, {requests_needed(50)} do"
        )
    return tuple(found)


def client_problems(client: ClientHealth, limit_seconds: float) -> list[str]:
    """Why the client may have been the bottleneck."""
    found = []
    lags = {
        "requests were sent late": client.send.p99,
        "the client's event loop woke up late": client.loop.p99,
    }
    for what, lag in lags.items():
        if lag > limit_seconds:
            found.append(
                f"{what}: p99 of the lag {1e3 * lag:.1f} ms, limit {1e3 * limit_seconds:g} ms; the"
                " client was the bottleneck: use more processes, or a machine with idle cores"
            )
    busiest = max(client.cpu_share, default=0.0)
    if busiest > BUSY_CPU:
        found.append(
            f"a process of the client used {busiest:.0%} of a core, limit {BUSY_CPU:.0%}: use more"
            " processes"
        )
    return found


def error_problems(errors: Mapping[str, int], count: int, load: Load) -> list[str]:
    """Too many failures to say how fast the server is."""
    failed = sum(errors.values())
    if count and failed / count <= load.max_error_share:
        return []
    kinds = ", ".join(f"{number} x {status}" for status, number in errors.items())
    return [
        f"{failed} of {count} requests failed ({kinds or 'none was sent'}), limit"
        f" {load.max_error_share:.1%}"
    ]


def errors_of(statuses: npt.NDArray[Any]) -> dict[str, int]:
    """How many requests ended how, without the good ones."""
    counts = Counter(statuses.tolist())
    return {str(status): count for status, count in sorted(counts.items()) if status != OK}


def health(runs: Sequence[Measured]) -> ClientHealth:
    """The client's own part in some runs together; `cpu_share` is the highest of each process."""
    by_process = zip(*(run.cpu_share for run in runs), strict=True)
    return ClientHealth(
        send=plain_lag(np.concatenate([run.columns["lag"] for run in runs])),
        loop=weighted_lag(np.concatenate([run.heartbeat for run in runs]), HEARTBEAT_SECONDS),
        cpu_share=tuple(max(shares) for shares in by_process),
    )


def notes_of(result: LoadResult) -> tuple[str, ...]:
    """What the reader of a valid result should know."""
    return (
        *_missing_percentiles("TTFT", result.ttft),
        *_missing_percentiles("TPOT", result.tpot),
        *_missing_percentiles("end-to-end", result.e2e),
        *_about_tokens(result),
        *_about_the_rate(result),
        *_about_the_machine(result),
    )


def _missing_percentiles(name: str, values: Percentiles) -> Iterator[str]:
    missing = [point.percent for point in values.points if point.value is None]
    if values.count and missing:
        percents = " and ".join(f"p{percent:g}" for percent in missing)
        needed = " and ".join(str(requests_needed(percent)) for percent in missing)
        yield (
            f"{name}: no {percents} from {values.count} requests, worth {values.effective:.0f}"
            f" independent ones; {needed} are needed"
        )


def _about_tokens(result: LoadResult) -> Iterator[str]:
    if result.short:
        yield (
            f"{result.short} answers have fewer than the {result.load.new_tokens} tokens that were"
            " asked for"
        )
    if not result.counted_by_server:
        yield (
            "the server did not count tokens: pieces of text are counted, of which one can hold"
            " several tokens"
        )
        return
    pieces = sum(result.rows.chunks)
    each = sum(result.rows.tokens) / pieces if pieces else 1.0
    if abs(each - 1) > TOKENS_PER_PIECE:
        yield (
            f"{each:.2f} tokens in a piece of text: inter-token times are of pieces, time per token"
            " (TPOT) is of tokens"
        )


def _about_the_rate(result: LoadResult) -> Iterator[str]:
    rate = result.load.rate_per_second
    growth = _growth(result.rows)
    if rate and growth > GROWTH:
        yield (
            f"the server does not keep up with {rate:g} requests/s: the last third of the requests"
            f" took {growth:.1f} times as long as the first"
        )


def _growth(rows: Rows) -> float:
    """The median time to answer of the last third over that of the first; 1 with too few."""
    times = [seconds for seconds, status in zip(rows.e2e, rows.status, strict=True) if status == OK]
    third = len(times) // 3
    if third < FEWEST_PER_THIRD:
        return 1.0
    return float(np.median(times[-third:]) / np.median(times[:third]))


def _about_the_machine(result: LoadResult) -> Iterator[str]:
    busy = result.environment.cpu_share or 0.0
    if busy > BUSY_MACHINE:
        yield (
            f"the processors of the client's machine were {busy:.0%} busy: whatever else runs there"
            " is in the figures"
        )
    for gpu in result.environment.gpus:
        yield from _throttling(gpu)


def _throttling(gpu: GpuState) -> Iterator[str]:
    for reason, share in gpu.throttle.items():
        if reason != "idle" and share > THROTTLED:
            yield f"GPU {gpu.index} held back by {reason} {share:.0%} of the time"
