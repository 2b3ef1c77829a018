"""The load generator against real servers whose delays are known: what it measures, what it counts,
and when it refuses to say."""

# covers artifacts/records/load_results.py
# covers tasks/load/stream.py
# covers tasks/load/worker.py

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from artifacts.records.load_results import LoadResult, loads_of
from configs.load_testing import LoadTest, Slo
from tasks.load.run import run_loads
from tasks.load.target import at_url
from tests.support.load_testing import load
from tests.support.slow_server import running

pytestmark = pytest.mark.slow


def run(url: str, **more: Any) -> LoadResult:
    return run_loads(at_url(url), [load(**more)])[0]


def seen(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(url + "/log") as response:
        found: list[dict[str, Any]] = json.loads(response.read())
    return found


def median(values: Any) -> float:
    value = values.at(50).value
    assert value is not None
    return float(value)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_known_delays_come_back(api: str) -> None:
    with running(ttft=0.12, tpot=0.02) as url:
        result = run(url, api=api, processes=2)
    assert result.valid, result.problems
    assert median(result.ttft) == pytest.approx(0.12, abs=0.03)
    assert median(result.tpot) == pytest.approx(0.02, abs=0.004)
    assert median(result.inter_token) == pytest.approx(0.02, abs=0.006)
    assert median(result.e2e) == pytest.approx(0.32, abs=0.05)
    assert sum(result.inter_token_histogram.counts) == 24 * 10
    assert result.counted_by_server and set(result.rows.tokens) == {11} and not result.errors
    assert result.tokens_per_second == pytest.approx(4 * 11 / 0.32, rel=0.25)
    assert LoadResult.model_validate_json(result.model_dump_json()) == result


def test_an_open_loop_does_not_wait_for_answers() -> None:
    # serves about 9 requests a second of the 30 that come
    with running(ttft=0.2, tpot=0.001, slots=2) as url:
        result = run(url, rate_per_second=30, duration_seconds=2, new_tokens=2, processes=2)
    late = [status for status in result.rows.status if status == "ok"]
    assert len(late) == len(result.rows.start) > 35
    # sent when they were due, though the answers to earlier ones were still to come
    assert max(result.rows.start) > 1.5
    assert result.requests_per_second < 15
    assert any("does not keep up" in note for note in result.notes), result.notes
    assert max(result.rows.e2e) > 1


def test_every_prompt_is_new_and_as_long_as_was_asked() -> None:
    with running(ttft=0.005, tpot=0.001, tokens_per_word=1.7) as url:
        result = run(url, prompt_tokens=200, processes=2)
        log = seen(url)
    assert all(
        count is not None and abs(count - 200) <= 2 for count in result.rows.prompt_tokens
    ), result.rows.prompt_tokens
    assert len({entry["prompt"] for entry in log}) == len(log) > 24
    assert all(entry["ignore_eos"] for entry in log)


def test_a_sweep_sends_no_prompt_twice() -> None:
    config = LoadTest(
        concurrencies=(1, 3),
        rates_per_second=(40,),
        requests=8,
        prompt_tokens=20,
        new_tokens=3,
        max_lag_ms=500,
    )
    with running(ttft=0.005, tpot=0.001) as url:
        results = run_loads(at_url(url), loads_of(config, 1))
        log = seen(url)
    assert [result.load.name for result in results] == [
        "concurrency 1",
        "concurrency 3",
        "40 requests/s",
    ]
    measured = [entry["prompt"] for entry in log]
    assert len(set(measured)) >= len(measured) - 6 * 10  # of warm-ups alone some can come again


def test_a_piece_of_several_tokens_is_told() -> None:
    with running(ttft=0.01, tpot=0.005, per_chunk=4) as url:
        result = run(url, new_tokens=41)
    assert set(result.rows.chunks) == {11} and set(result.rows.tokens) == {41}
    assert median(result.inter_token) == pytest.approx(0.02, abs=0.006)
    assert median(result.tpot) == pytest.approx(0.005, abs=0.0015)
    assert any("tokens in a piece" in note for note in result.notes)


def test_without_the_servers_count_pieces_are_counted_and_short_answers_too() -> None:
    with running(ttft=0.01, tpot=0.002, no_usage=True, most=7) as url:
        result = run(url)
    assert (
        not result.counted_by_server
        and set(result.rows.tokens) == {7}
        and set(result.rows.prompt_tokens) == {None}
    )
    assert result.short == 24 and any("did not count" in note for note in result.notes)


def test_failures_are_counted_and_too_many_are_no_result() -> None:
    with running(ttft=0.01, tpot=0.002, fail=0.2, cut=0.2, seed=3) as url:
        result = run(url, requests=60, slo=Slo(ttft_ms=10_000))
    assert result.errors.keys() == {"http 500", "cut"} and 10 < sum(result.errors.values()) < 45
    assert "planted failure" in result.error_example
    assert result.within_slo is not None and result.within_slo.value == pytest.approx(
        1 - sum(result.errors.values()) / 60
    )
    assert any("requests failed" in problem for problem in result.problems)
    with running(ttft=0.01, tpot=0.002, fail=0.1, seed=3) as url:
        assert run(url, requests=60, max_error_share=0.5).valid


def test_a_client_that_cannot_keep_up_says_so() -> None:
    with running(ttft=0.001, tpot=0.0) as url:
        result = run(
            url,
            rate_per_second=20_000,
            requests=2500,
            new_tokens=4,
            processes=1,
            max_lag_seconds=0.02,
        )
    assert not result.valid
    assert any("sent late" in problem for problem in result.problems), result.problems
    assert result.client.send.p99 > 0.1
