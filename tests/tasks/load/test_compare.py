"""The comparison of two servers: its interval and error rates by simulation, and real servers of
which one is slower."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from artifacts.records.load_results import Load, Metric, Outcome, SpeedComparison
from configs.errors import DifferentHardware
from tasks.load.compare import (
    MIN_ROUNDS,
    ComparisonPlan,
    compare_servers,
    interval,
    outcome_of,
    signed_rank_place,
)
from tasks.load.target import at_url
from tests.support.slow_server import running

TRIALS = 400


def outcomes(
    rng: np.random.Generator, rounds: int, ratio: float, noise: npt.NDArray[np.float64]
) -> list[Outcome]:
    return [
        outcome_of(interval("e2e", (ratio * np.exp(row)).tolist())) for row in noise[:, :rounds]
    ]


@pytest.mark.parametrize(("count", "critical"), [(6, 0), (8, 3), (10, 8), (12, 13), (20, 52)])
def test_the_published_critical_values_of_the_signed_rank_test(count: int, critical: int) -> None:
    assert signed_rank_place(count) == critical + 1


def test_the_interval_is_what_the_exact_test_does_not_refuse() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        logs = rng.normal(0.02, 0.03, 9)
        found = interval("e2e", np.exp(logs).tolist())
        assert (found.low > 1 or found.high < 1) == (
            stats.wilcoxon(logs, method="exact").pvalue <= 0.05
        )
        assert found.low <= found.median <= found.high


@pytest.mark.parametrize("rounds", [8, 10])
@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_five_percent_is_found_nine_times_in_ten_and_nothing_once_in_twenty(
    rounds: int, tails: str
) -> None:
    rng = np.random.default_rng(1)
    noise = 0.025 * (
        rng.normal(size=(TRIALS, rounds))
        if tails == "normal"
        else rng.standard_t(3, size=(TRIALS, rounds)) / np.sqrt(3)
    )
    assert np.mean([one == "slower" for one in outcomes(rng, rounds, 1.05, noise)]) >= 0.9
    assert np.mean(
        [one != "no difference seen" for one in outcomes(rng, rounds, 1.0, noise)]
    ) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / TRIALS)


def test_the_bootstrap_of_the_median_would_cry_wolf() -> None:
    rng = np.random.default_rng(2)
    found = [interval("e2e", np.exp(row).tolist()) for row in rng.normal(0, 0.02, size=(200, 7))]
    percentile = np.mean([one.bootstrap_low > 1 or one.bootstrap_high < 1 for one in found])
    signed_rank = np.mean([one.low > 1 or one.high < 1 for one in found])
    assert signed_rank <= 0.08 and percentile >= signed_rank


def test_what_would_be_seen_is_seen_nine_times_in_ten() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.04, size=(TRIALS, 10))
    promised = float(
        np.median([interval("e2e", np.exp(row).tolist()).smallest_seen for row in noise])
    )
    assert (
        0.8 <= np.mean([one == "slower" for one in outcomes(rng, 10, 1 + promised, noise)]) <= 0.96
    )


def test_what_lies_within_the_tolerance_is_no_difference() -> None:
    found = interval("e2e", [1.005, 1.006, 1.004, 1.005, 1.006, 1.004, 1.005, 1.005])
    assert (
        found.low > 1
        and outcome_of(found) == "no difference seen"
        and outcome_of(found, 0.001) == "slower"
    )
    assert interval("e2e", found.rounds, 0.05).smallest_seen > 0.05


def test_more_tokens_a_second_are_faster() -> None:
    assert (
        outcome_of(interval("tokens_per_second", [1.1, 1.11, 1.09, 1.1, 1.12, 1.08, 1.1, 1.1]))
        == "faster"
    )
    assert outcome_of(interval("e2e", [1.1, 1.11, 1.09, 1.1, 1.12, 1.08, 1.1, 1.1])) == "slower"


def plan(metric: Metric = "e2e", rounds: int = MIN_ROUNDS, new_tokens: int = 12) -> ComparisonPlan:
    load = Load(
        concurrency=4,
        requests=12,
        prompt_tokens=16,
        new_tokens=new_tokens,
        max_lag_seconds=0.5,
    )
    return ComparisonPlan(load=load, rounds=rounds, metric=metric)


@pytest.mark.slow
def test_a_server_that_is_a_third_slower_is_found() -> None:
    with (
        running(ttft=0.02, tpot=0.004, jitter=0.03) as quick,
        running(ttft=0.02, tpot=0.004, jitter=0.03, slowdown=1.35) as slow,
    ):
        found = compare_servers(at_url(quick), at_url(slow), plan())
        back = compare_servers(at_url(slow), at_url(quick), plan("tokens_per_second"))
    assert found.outcome == "slower", found
    assert 1.15 < found.ratio("e2e").median < 1.5 and found.ratio("tokens_per_second").median < 1
    assert len(found.ratio("tpot").rounds) == MIN_ROUNDS
    assert back.outcome == "faster", back
    assert SpeedComparison.model_validate_json(found.model_dump_json()) == found


@pytest.mark.slow
def test_a_server_that_fails_is_not_compared() -> None:
    with (
        running(ttft=0.01, tpot=0.001) as whole,
        running(ttft=0.01, tpot=0.001, fail=0.3, seed=5) as failing,
    ):
        found = compare_servers(at_url(whole), at_url(failing), plan())
    assert found.outcome == "invalid" and any(
        "second server" in problem and "http 500" in problem for problem in found.problems
    ), found.problems


def test_other_machines_are_refused_before_anything_is_sent() -> None:
    with running() as url, pytest.raises(DifferentHardware):
        compare_servers(at_url(url), at_url("http://192.0.2.1:1", model="m"), plan())


def test_too_few_rounds_and_no_such_metric() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 6"):
        plan(rounds=5)
    with pytest.raises(ValueError, match="one token"):
        plan("tpot", new_tokens=1)
