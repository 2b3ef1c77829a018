"""The processes of the load generator: what they count, how they end, and what is left of them."""

# covers tasks/load/worker.py

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from configs.errors import LoadClientDied
from configs.paths import PROJECT
from tasks.load.pool import Pool
from tasks.load.prompts import WordCount
from tasks.load.target import at_url
from tests.support.load_testing import load
from tests.support.slow_server import running

pytestmark = pytest.mark.slow


def test_a_request_has_its_limit() -> None:
    with running(ttft=0.02, tpot=0.001, slots=1) as url, Pool(1) as pool:
        one = load(concurrency=30, requests=30, request_timeout_seconds=0.15)
        measured = pool.run(at_url(url).service(one), one, 5)
    assert {"ok", "timeout"} == set(measured.columns["status"].tolist())


def test_a_killed_process_is_an_error_and_leaves_nothing() -> None:
    with running(ttft=0.05, tpot=0.01) as url:
        pool = Pool(2)
        pids, scratch = pool.pids, Path(pool._scratch.name)
        threading.Timer(1.0, os.kill, (pids[1], signal.SIGKILL)).start()
        with (
            pool,
            pytest.raises(LoadClientDied, match=r"process 1 of the load generator .* status -9"),
        ):
            one = load(duration_seconds=60, processes=2)
            pool.run(at_url(url).service(one), one, 10)
    assert not any(psutil.pid_exists(pid) for pid in pids) and not scratch.exists()


def test_a_process_that_fails_tells_why() -> None:
    with Pool(1) as pool, pytest.raises(LoadClientDied, match="KeyError"):
        pool._all(
            [{"do": "nothing", "service": asdict(at_url("http://x", model="m").service(load()))}],
            time.monotonic() + 30,
        )


def test_no_process_outlives_its_parent() -> None:
    code = (
        "from tasks.load.pool import Pool; import time; pool = Pool(2); print(*pool.pids,"
        " flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=PROJECT
    )
    assert parent.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_a_server_that_never_warms_up_is_no_result() -> None:
    with running(ttft=0.03, tpot=0.001, jitter=0.6, seed=1) as url, Pool(1) as pool:
        one = load(concurrency=1, requests=6)
        found = [pool.warm_up(at_url(url).service(one), one, 5) for _ in range(6)]
    assert any(len(one.medians) > 2 for one in found)
    assert all(len(one.medians) == 6 for one in found if not one.steady)


def test_words_are_counted_by_the_server() -> None:
    with running(ttft=0.001, tpot=0.0, tokens_per_word=2.0) as url, Pool(1) as pool:
        counted = pool.count_words(at_url(url).service(load()), 0)
        assert counted.per_word == pytest.approx(2.0) and counted.fixed == pytest.approx(3.0)
    with running(ttft=0.001, tpot=0.0, no_usage=True) as url, Pool(1) as pool:
        assert pool.count_words(at_url(url).service(load()), 0) == WordCount()
