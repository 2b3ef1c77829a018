"""Goodput, throughput and the stored rows of a run, against figures worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from artifacts.records.load_results import Environment, LoadResult, Target, Warmup
from configs.load_testing import Slo
from tasks.load.metrics import summarize, tpot_of, within
from tasks.load.pool import Measured
from tests.support.load_testing import LOAD, columns, result_of


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
