"""When requests are sent, and by which process."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from artifacts.records.load_results import Load


def poisson(
    rate_per_second: float,
    *,
    seed: int,
    requests: int | None = None,
    duration_seconds: float | None = None,
) -> npt.NDArray[np.float64]:
    """Arrival times of a Poisson process in seconds from its start, ascending: `requests` of them,
    or all within `duration_seconds`."""
    rng = np.random.default_rng([seed, 1])
    if requests is not None:
        return np.cumsum(rng.exponential(1 / rate_per_second, requests))
    assert duration_seconds is not None
    count = rng.poisson(rate_per_second * duration_seconds)
    # given their number, arrivals are uniform
    return np.sort(rng.uniform(0, duration_seconds, count))


def deal(times: npt.NDArray[np.float64], processes: int) -> list[list[tuple[int, float]]]:
    """One schedule for several processes, in turn: (number of the request, time) for each. Together
    they are the whole again."""
    numbered = [(number, float(time)) for number, time in enumerate(times)]
    return [numbered[first::processes] for first in range(processes)]


def shares(total: int, parts: int) -> list[int]:
    """`total` in whole parts that differ by one at most, larger ones first."""
    return [total // parts + (number < total % parts) for number in range(parts)]


def workers_for(load: Load) -> int:
    """Processes that have something to do: no more than the requests in flight of a closed loop, or
    the requests."""
    return min(load.processes, load.concurrency or load.processes, load.requests or load.processes)
