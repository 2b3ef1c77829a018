"""Arrivals are Poisson, and dealing them to processes loses none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from artifacts.records.load_results import Load
from tasks.load.arrivals import deal, poisson, shares, workers_for


def test_gaps_are_exponential_and_counts_vary_as_much_as_they_are() -> None:
    times = poisson(50, seed=3, requests=20_000)
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert stats.kstest(gaps, "expon", args=(0, 1 / 50)).pvalue > 0.01
    counts = np.histogram(times, np.arange(0, times[-1], 1.0))[0]
    # 0 for a steady beat, more than 1 for bursts
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.2)


def test_in_a_given_time_their_number_varies_too() -> None:
    counts = [len(poisson(40, seed=seed, duration_seconds=2)) for seed in range(400)]
    assert np.mean(counts) == pytest.approx(80, rel=0.03)
    assert np.var(counts) / np.mean(counts) == pytest.approx(1, abs=0.25)
    times = poisson(40, seed=1, duration_seconds=2)
    assert (np.diff(times) >= 0).all() and times[0] >= 0 and times[-1] < 2


def test_a_seed_says_which() -> None:
    assert (poisson(9, seed=4, requests=50) == poisson(9, seed=4, requests=50)).all()
    assert (poisson(9, seed=4, requests=50) != poisson(9, seed=5, requests=50)).all()


def test_processes_share_one_schedule() -> None:
    times = poisson(10, seed=0, requests=101)
    parts = deal(times, 4)
    assert sorted(number for part in parts for number, _ in part) == list(range(101))
    assert sorted(time for part in parts for _, time in part) == times.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shares_add_up() -> None:
    assert shares(10, 4) == [3, 3, 2, 2] and shares(2, 3) == [1, 1, 0]


def test_no_process_without_work() -> None:
    common = {"prompt_tokens": 8, "new_tokens": 8, "processes": 8}
    assert workers_for(Load(concurrency=3, duration_seconds=1, **common)) == 3
    assert workers_for(Load(rate_per_second=3, requests=2, **common)) == 2
    assert workers_for(Load(rate_per_second=3, duration_seconds=2, **common)) == 8
