"""`lmflows bench` and `lmflows bench-compare` on real servers, through Prefect: tables, raw figures
and exit statuses."""

# covers flows/cli/bench.py
# covers flows/cli/commands.py

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.records.load_results import LoadResult, SpeedComparison
from configs.errors import ConfigError
from configs.paths import PROJECT
from flows.cli.bench import bench, bench_compare
from tests.support.patience import PATIENCE
from tests.support.slow_server import running

# the two commands alone, as `flows.cli.app` registers them
COMMANDS = """
import sys
from configs.errors import LmflowsError
import typer
from flows.cli.bench import bench, bench_compare
app = typer.Typer(pretty_exceptions_enable=False)
app.command("bench")(bench)
app.command("bench-compare")(bench_compare)
try:
    app(standalone_mode=False)
except LmflowsError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_status)
"""


def call(home: Path, api: str, *words: str) -> tuple[int, str, str]:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")
    } | {"PREFECT_API_URL": api}
    environment |= {"LMFLOWS_HOME": str(home), "HOME": str(home), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, *words],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=PATIENCE,
        env=environment,
    )
    return done.returncode, done.stdout, done.stderr


SMALL = ("--prompt-tokens", "16", "--new-tokens", "8", "--max-lag-ms", "500")


def test_a_sweep_of_a_url(tmp_path: Path, prefect_api: str) -> None:
    (tmp_path / "home").mkdir()
    with running(ttft=0.03, tpot=0.005) as url:
        status, output, errors = call(
            tmp_path / "home",
            prefect_api,
            "bench",
            "--url",
            url,
            "--concurrency",
            "1,4",
            "--rate",
            "20",
            "--requests",
            "16",
            "--slo-ttft-ms",
            "1000",
            *SMALL,
            "--json",
            str(tmp_path / "figures.json"),
        )
    assert status == 0, errors
    assert all(
        text in output
        for text in (
            "concurrency 1",
            "concurrency 4",
            "20 requests/s",
            "within SLO",
            "TTFT",
            "inter-token",
        )
    ), output
    assert "INVALID" not in output
    results = [
        LoadResult.model_validate(one)
        for one in json.loads((tmp_path / "figures.json").read_text())["results"]
    ]
    assert [len(one.rows.status) for one in results] == [16, 16, 16]
    assert "p99" in errors and "are needed" in errors  # 16 requests have none


def test_a_slower_server_has_an_exit_status(tmp_path: Path, prefect_api: str) -> None:
    (tmp_path / "home").mkdir()
    with (
        running(ttft=0.01, tpot=0.003) as one,
        running(ttft=0.01, tpot=0.003, slowdown=1.6) as other,
    ):
        status, output, errors = call(
            tmp_path / "home",
            prefect_api,
            "bench-compare",
            one,
            other,
            "--requests",
            "8",
            "--rounds",
            "6",
            *SMALL,
            "--json",
            str(tmp_path / "figures.json"),
        )
    assert status == 3, (output, errors)
    assert "is slower than" in errors and "end to end (decides)" in output
    comparison = SpeedComparison.model_validate_json((tmp_path / "figures.json").read_text())
    assert comparison.outcome == "slower" and 1.3 < comparison.ratio("e2e").median < 1.9


def test_an_invalid_run_says_so_and_is_no_success(tmp_path: Path, prefect_api: str) -> None:
    (tmp_path / "home").mkdir()
    with running(ttft=0.01, tpot=0.001, fail=0.5, seed=2) as url:
        status, output, errors = call(
            tmp_path / "home",
            prefect_api,
            "bench",
            "--url",
            url,
            "--concurrency",
            "2",
            "--requests",
            "20",
            *SMALL,
        )
    assert status == 1 and "INVALID" in output and "requests failed" in errors, (output, errors)


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"url": "127.0.0.1:8000"}, "--url"),
        ({"url": "http://x", "endpoint": "y"}, "--url"),
        ({"url": "http://x", "concurrency": "0"}, "--concurrencies"),
        ({"url": "http://x", "rate": "fast"}, "option"),
        ({"url": "http://x", "slo_ttft_ms": -1.0}, "--ttft-ms"),
        ({"url": "http://x", "api": "images"}, "--api"),
        ({"url": "http://x", "json_file": Path("/nowhere/at/all.json")}, "--json"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(
    given: dict[str, object], where: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        bench(**given)  # type: ignore[arg-type]
    assert raised.value.where == where


def test_a_comparison_needs_rounds_and_a_known_figure() -> None:
    for given, where in (
        ({"rounds": 3}, "--rounds"),
        ({"metric": "speed"}, "--metric"),
        ({"metric": "tpot", "new_tokens": 1}, "options"),
    ):
        with pytest.raises(ConfigError) as raised:
            bench_compare("http://x", "http://y", **given)
        assert raised.value.where == where
