"""A run performs steps through Prefect, and remembers them: what they took, which were earlier
answers, what may be reused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from artifacts.store.local import LocalStore
from configs.errors import StepTimeout
from configs.paths import PROJECT
from flows.run.run import Run
from tasks.machine.gpus import Gpu
from tests.support import planted
from tests.support.planted import Planted

WRONG = """
from flows.run.run import Run
from tasks.download import download
from tasks.pad import PadRequest

def wrong(run: Run, request: PadRequest) -> None:
    run(download, request)
"""
RIGHT = WRONG.replace("tasks.download import download", "tasks.pad import pad").replace(
    "run(download,", "run(pad,"
)
GPU = Gpu(0, "GPU-test-run", "Test", "sm_90", 1, 1, "1")


@pytest.fixture
def run(tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setenv("LMFLOWS_HOME", str(tmp_path / "home"))
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield Run(tmp_path / "run", LocalStore(tmp_path / "store"))


def mypy(code: str, folder: Path) -> tuple[int, str]:
    (folder / "flow.py").write_text(code)
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "mypy", "--config-file", PROJECT / "pyproject.toml"),
            *("--cache-dir", PROJECT / ".mypy_cache", folder / "flow.py"),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
def test_mypy_refuses_the_request_of_another_step(tmp_path: Path) -> None:
    assert mypy(RIGHT, tmp_path)[0] == 0
    status, said = mypy(WRONG, tmp_path)
    assert status == 1
    assert "flow.py:7: error" in said and "Found 1 error" in said


def test_a_step_is_answered_and_remembered(run: Run, tmp_path: Path) -> None:
    @flow(persist_result=False)
    def twice() -> None:
        run(planted.well, Planted(folder=tmp_path))
        run(planted.well, Planted(folder=tmp_path), label="again")

    twice()
    assert [done.time.name for done in run.finished] == ["well", "well again"]
    assert [done.reused for done in run.finished] == [False, True]
    assert run.reused == ("well again",)
    assert {done.kept for done in run.finished} == {True}
    first, second = run.times
    assert first.seconds == second.seconds > 0


def test_a_time_limit_is_the_requests(run: Run, tmp_path: Path) -> None:
    @flow(persist_result=False)
    def too_long() -> None:
        run(planted.sleeps, Planted(folder=tmp_path, minutes=1 / 60))

    with pytest.raises(StepTimeout, match="longer than its limit of 1 s"):
        too_long()
    assert run.finished == []
