"""Tests that need a CUDA GPU: `make test-gpu`. Skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.paths import PROJECT
from configs.reader import load
from tasks.machine import gpus
from tests.conftest import BEFORE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        as_before(patch)
        missing = not gpus.visible()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(900))
            if missing:
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


def as_before(patch: pytest.MonkeyPatch) -> None:
    """The other tests hide the GPUs and take one thread each; here all of them are back."""
    for name, value in BEFORE.items():
        if value is None:
            patch.delenv(name, raising=False)
        else:
            patch.setenv(name, value)


@pytest.fixture(scope="session", autouse=True)
def _gpus() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        as_before(patch)
        yield


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as the demo's download step makes it: fp16, hidden size 576."""
    from artifacts.store.local import LocalStore
    from tasks.download import DownloadRequest, download
    from tasks.runner.step import Context

    store = LocalStore(tmp_path_factory.mktemp("smollm2"))
    return download(
        DownloadRequest(source=load(PROJECT / "configs/demo.yaml").source), Context(store)
    ).model.path


@pytest.fixture(scope="session")
def padded(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with every input dimension a multiple of 128."""
    return pad_to(smollm2, 128, tmp_path_factory.mktemp("padded"))


def pad_to(folder: Path, multiple: int, place: Path) -> Path:
    """A model folder zero-padded by the project's own step."""
    from artifacts.store.local import LocalStore
    from tasks.pad import PadRequest, pad
    from tasks.runner.step import Context

    store = LocalStore(place)
    with store.staging() as staging:
        shutil.copytree(folder, staging.path, dirs_exist_ok=True)
        model = store.commit(staging, "fp16", recipe={})
    return pad(PadRequest(model=model, multiple=multiple), Context(store)).model.path
