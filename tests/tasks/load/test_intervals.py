"""Percentiles and their intervals, shares, and the client's lag, against figures worked out by hand
or by simulation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tasks.load.intervals import (
    effective_count,
    effective_gaps,
    percentiles,
    plain_lag,
    requests_needed,
    weighted_lag,
    wilson,
)


def autocorrelated(
    rng: np.random.Generator, count: int, persistence: float
) -> npt.NDArray[np.float64]:
    """An AR(1) series of standard normal values."""
    values, noise = np.empty(count), rng.normal(size=count) * np.sqrt(1 - persistence**2)
    values[0] = rng.normal()
    for index in range(1, count):
        values[index] = persistence * values[index - 1] + noise[index]
    return values


@pytest.mark.parametrize(("percent", "truth"), [(50.0, 0.0), (95.0, 1.64485), (99.0, 2.32635)])
def test_an_interval_holds_the_true_percentile_19_times_in_20(percent: float, truth: float) -> None:
    rng = np.random.default_rng(1)
    points = [percentiles(rng.normal(size=800)).at(percent) for _ in range(400)]
    held = [
        point.low <= truth <= point.high
        for point in points
        if point.low is not None and point.high is not None
    ]
    assert len(held) > 380 and np.mean(held) >= 0.93


def test_correlated_requests_count_for_less() -> None:
    rng = np.random.default_rng(2)
    honest: list[bool] = []
    naive: list[bool] = []
    for _ in range(300):
        values = autocorrelated(rng, 600, 0.8)  # worth 600 * (1 - 0.8) / (1 + 0.8), about 67
        for found, effective in ((honest, None), (naive, 600.0)):
            point = percentiles(values, effective).at(50)
            assert point.low is not None and point.high is not None
            found.append(point.low <= 0 <= point.high)
    assert np.mean(honest) >= 0.9
    # what an interval would be worth that takes the requests as independent
    assert np.mean(naive) < 0.7


def test_independent_requests_count_in_full() -> None:
    rng = np.random.default_rng(3)
    assert np.median(
        [effective_count(rng.exponential(size=500)) for _ in range(50)]
    ) == pytest.approx(500, rel=0.05)
    assert effective_count(np.full(20, 0.5)) == 20


def test_gaps_of_one_answer_count_for_less_if_they_are_alike() -> None:
    rng = np.random.default_rng(4)
    independent = rng.exponential(size=200 * 50)
    alike = np.repeat(rng.exponential(size=200), 50)
    counts = np.full(200, 50)
    assert effective_gaps(independent, counts) == pytest.approx(10_000, rel=0.35)
    assert effective_gaps(alike, counts) == pytest.approx(200, rel=0.35)


@pytest.mark.parametrize(("percent", "needed"), [(50.0, 6), (95.0, 72), (99.0, 368)])
def test_too_few_requests_have_no_percentile(percent: float, needed: int) -> None:
    values = np.random.default_rng(5).normal(size=needed)
    assert requests_needed(percent) == needed
    assert percentiles(values, needed).at(percent).value is not None
    assert percentiles(values[1:], needed - 1).at(percent).value is None


def test_wilson_is_an_interval_even_of_all() -> None:
    share = wilson(50, 50)
    assert share.value == 1 and 0.9 < share.low < 0.95 and share.high == pytest.approx(1)


def test_one_long_stall_weighs_as_much_as_it_lasted() -> None:
    # four seconds of beats, and one second of silence
    lags = np.concatenate([np.full(400, 0.0001), [1.0]])
    assert weighted_lag(lags, 0.01).p99 == 1.0
    assert plain_lag(lags).p99 < 0.001
