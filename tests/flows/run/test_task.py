"""A step as a Prefect task: its declaration says whether it computes on GPUs, and so which slots it
holds and which GPUs its child sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from artifacts.store.local import LocalStore
from flows.run.run import Run
from flows.run.task import can_help, prefect_task
from tasks.machine.gpus import Gpu
from tests.support import planted
from tests.support.planted import Planted, Slots, Uuids

GPUS = tuple(Gpu(n, f"GPU-test-task-{n}", "Test", "sm_90", 1, 1, "1") for n in range(2))
ASKED = Uuids(uuids=tuple(gpu.uuid for gpu in GPUS))


@pytest.fixture
def run(tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setenv("LMFLOWS_HOME", str(tmp_path / "home"))
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield Run(tmp_path / "run", LocalStore(tmp_path / "store"), GPUS)


def test_a_step_that_computes_on_gpus_holds_their_slots_and_no_other_step_does(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.run.task.require_free", lambda *_, what: None)  # no NVML here

    @flow(persist_result=False)
    def both() -> tuple[Slots, Slots]:
        return run(planted.computes_on_gpus, ASKED), run(planted.computes_on_none, ASKED)

    held, free = both()
    assert (held.held, free.held) == ((True, True), (False, False))
    assert planted.slots_of(ASKED.uuids) == (False, False)


def test_a_gpu_step_that_forgets_its_declaration_sees_no_gpu(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it cannot compute beside another run: on a machine with GPUs, too, CUDA shows it none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    @flow(persist_result=False)
    def forgot() -> None:
        run(planted.sees, Planted(folder=tmp_path))

    forgot()
    assert "GPUs ''" in (run.folder / "sees" / "log.txt").read_text()


def test_the_task_has_the_words_of_the_declaration() -> None:
    task = prefect_task(planted.breaks_off)
    assert task.name == "breaks off"
    assert task.description == planted.breaks_off.summary
    assert task.retries == 2
    assert task.retry_condition_fn is can_help
