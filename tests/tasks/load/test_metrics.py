"""Percentiles and their intervals, goodput and the client's lag, against figures worked out by hand
or by simulation."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from artifacts.records.load_results import Environment, Load, LoadResult, Target, Warmup
from configs.load_testing import Slo
from tasks.load.metrics import (
    effective_count,
    effective_gaps,
    percentiles,
    plain_lag,
    requests_needed,
    summarize,
    tpot_of,
    weighted_lag,
    wilson,
    within,
)
from tasks.load.pool import Measured

LOAD = Load(concurrency=2, duration_seconds=10, prompt_tokens=8, new_tokens=11)


def columns(rows: list[tuple[float, float, float, int, str]]) -> dict[str, npt.NDArray[Any]]:
    """Columns from (start, ttft, e2e, tokens, status)."""
    start, ttft, e2e, tokens, status = (list(column) for column in zip(*rows, strict=True))
    count = len(rows)
    return {
        "number": np.arange(count),
        "start": np.array(start),
        "lag": np.zeros(count),
        "ttft": np.array(ttft),
        "e2e": np.array(e2e),
        "tokens": np.array(tokens),
        "prompt_tokens": np.full(count, 8),
        "chunks": np.array(tokens),
        "status": np.array(status, "U32"),
        "gap_counts": np.zeros(count, np.int64),
    }


def result_of(
    load: Load, data: dict[str, npt.NDArray[Any]], *, steady: bool = True, cpu: float = 0.1
) -> LoadResult:
    measured = Measured(data, np.empty(0, np.float32), np.full(100, 0.001), (cpu,), "")
    return summarize(
        load,
        Target(url="http://x", model="m"),
        measured,
        Warmup(medians=(1.0, 1.0), steady=steady),
        Environment(fingerprint={"machine": "x"}),
        datetime.now(UTC),
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


def test_requests_that_hang_together_count_for_less() -> None:
    rng = np.random.default_rng(2)
    honest, naive = [], []
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


def test_goodput_by_hand() -> None:
    data = columns(
        [
            (0.0, 0.10, 1.10, 11, "ok"),  # good: 100 ms, (1.1 - 0.1) / 10 = 100 ms a token
            (1.0, 0.30, 1.30, 11, "ok"),  # first token too late
            (2.0, 0.10, 2.10, 11, "ok"),  # 200 ms a token: too slow
            (3.0, 0.10, 0.10, 1, "ok"),  # good: one token has no time per token
            (4.0, np.nan, 0.01, -1, "http 500"),
            (9.5, 0.10, 1.10, 11, "ok"),  # good, but after the end of the run
        ]
    )
    slo = Slo(ttft_ms=200, tpot_ms=150)
    assert tpot_of(data)[0] == pytest.approx(0.1) and np.isnan(tpot_of(data)[3])
    assert within(data, slo).tolist() == [True, False, False, True, False, True]
    result = result_of(LOAD.model_copy(update={"slo": slo}), data)
    assert result.goodput_per_second == pytest.approx(2 / 10)
    assert result.within_slo is not None and result.within_slo.value == pytest.approx(3 / 6)
    assert result.requests_per_second == pytest.approx(4 / 10)
    # 0.4 s of the last one's second lie within
    assert result.tokens_per_second == pytest.approx((11 + 11 + 11 + 1 + 11 * 0.4) / 10)
    assert result.errors == {"http 500": 1} and result.short == 1
    assert not result.valid and "1 of 6 requests failed" in result.problems[0]
    assert result_of(LOAD, data).goodput_per_second is None


def test_a_limit_of_the_whole_answer() -> None:
    data = columns([(0.0, 0.1, 1.0, 11, "ok"), (0.0, 0.1, 2.0, 11, "ok")])
    assert within(data, Slo(e2e_ms=1500)).tolist() == [True, False]


def test_wilson_is_an_interval_even_of_all() -> None:
    share = wilson(50, 50)
    assert share.value == 1 and 0.9 < share.low < 0.95 and share.high == pytest.approx(1)


def test_one_long_stall_weighs_as_much_as_it_lasted() -> None:
    # four seconds of beats, and one second of silence
    lags = np.concatenate([np.full(400, 0.0001), [1.0]])
    assert weighted_lag(lags, 0.01).p99 == 1.0
    assert plain_lag(lags).p99 < 0.001


def test_reasons_of_an_invalid_run() -> None:
    good = [(0.1 * number, 0.1, 1.0 + 0.01 * (number % 3), 11, "ok") for number in range(20)]
    assert result_of(LOAD, columns(good)).valid
    late = columns(good) | {"lag": np.full(20, 0.05)}
    assert "sent late" in result_of(LOAD, late).problems[0]
    assert "of a core" in result_of(LOAD, columns(good), cpu=0.97).problems[0]
    assert "never became steady" in result_of(LOAD, columns(good), steady=False).problems[0]
    assert "do not even bound the median" in result_of(LOAD, columns(good[:5])).problems[0]


def test_a_run_in_which_nothing_arrived_is_no_result() -> None:
    nothing = {name: values[:0] for name, values in columns([(0.0, 0.1, 1.0, 11, "ok")]).items()}
    result = result_of(LOAD, nothing)
    assert not result.valid and result.tokens_per_second == 0 and result.ttft.at(50).value is None


def test_a_saturated_open_loop_is_told() -> None:
    load = Load(rate_per_second=2, duration_seconds=30, prompt_tokens=8, new_tokens=11)
    queue = columns(
        [(0.5 * number, 0.1 + 0.1 * number, 1.0 + 0.1 * number, 11, "ok") for number in range(60)]
    )
    steady = columns(
        [(0.5 * number, 0.1, 1.0 + 0.01 * (number % 5), 11, "ok") for number in range(60)]
    )
    assert any("does not keep up" in note for note in result_of(load, queue).notes)
    assert not any("does not keep up" in note for note in result_of(load, steady).notes)


def test_ten_thousand_requests_stay_small_and_come_back_the_same() -> None:
    rng = np.random.default_rng(6)
    data = columns(
        [
            (float(start), float(ttft), float(ttft + 1), 128, "ok")
            for start, ttft in zip(
                np.sort(rng.uniform(0, 10, 10_000)), rng.exponential(0.1, 10_000), strict=True
            )
        ]
    )
    counts = np.full(10_000, 127)
    measured = Measured(
        data | {"gap_counts": counts},
        rng.exponential(0.008, counts.sum()).astype(np.float32),
        np.zeros(10),
        (0.1,),
        "",
    )
    result = summarize(
        LOAD,
        Target(url="http://x", model="m"),
        measured,
        Warmup(medians=(1.0,), steady=True),
        Environment(fingerprint={"machine": "x"}),
        datetime.now(UTC),
    )
    text = result.model_dump_json()
    assert len(text) < 2e6
    assert LoadResult.model_validate_json(text) == result
    assert sum(result.inter_token_histogram.counts) == counts.sum()
    assert result.ttft.at(99).value == pytest.approx(np.quantile(data["ttft"], 0.99), abs=1e-5)
