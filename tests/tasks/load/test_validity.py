"""What makes a run invalid, and what the reader of a valid one is shown."""

from __future__ import annotations

import threading

import numpy as np
import psutil

from artifacts.records.load_results import Load
from tasks.load.pool import Pool
from tasks.load.target import at_url
from tasks.load.validity import client_problems, health
from tests.support.load_testing import LOAD, columns, load, result_of
from tests.support.slow_server import running


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


def test_a_saturated_open_loop_has_a_note() -> None:
    load = Load(rate_per_second=2, duration_seconds=30, prompt_tokens=8, new_tokens=11)
    queue = columns(
        [(0.5 * number, 0.1 + 0.1 * number, 1.0 + 0.1 * number, 11, "ok") for number in range(60)]
    )
    steady = columns(
        [(0.5 * number, 0.1, 1.0 + 0.01 * (number % 5), 11, "ok") for number in range(60)]
    )
    assert any("does not keep up" in note for note in result_of(load, queue).notes)
    assert not any("does not keep up" in note for note in result_of(load, steady).notes)


def test_a_client_that_was_stopped_for_a_while_says_so() -> None:
    with running(ttft=0.05, tpot=0.001) as url, Pool(2) as pool:
        one = load(duration_seconds=3, processes=2)
        victim = psutil.Process(pool.pids[1])
        timers = [threading.Timer(1.0, victim.suspend), threading.Timer(2.0, victim.resume)]
        for timer in timers:
            timer.start()
        measured = pool.run(at_url(url).service(one), one, 10)
    found = health([measured])
    assert found.loop.p99 > 0.5
    assert any("event loop" in problem for problem in client_problems(found, 0.1))
