"""The plan of a run: its config is found where a person or a worker names it, and its results go
where the config or the policy says."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import paths
from configs.errors import LmflowsError
from flows.run.plan import find_config, make_plan

DEMO = "configs/demo.yaml"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMFLOWS_HOME", str(tmp_path / "home"))


def test_a_config_is_found_from_the_current_folder_first_and_then_in_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(DEMO) == paths.PROJECT / DEMO
    (tmp_path / "configs").mkdir()
    (tmp_path / DEMO).write_text("name: mine")
    assert find_config(DEMO) == Path(DEMO)


def test_a_run_writes_to_its_workspace_and_to_a_store_that_is_a_folder(tmp_path: Path) -> None:
    plain = make_plan(DEMO, None)
    assert plain.destination.folders == (paths.workspace(), paths.default_store())
    assert plain.destination.named_store is None
    elsewhere = make_plan(DEMO, {"upload.store": str(tmp_path / "elsewhere")})
    assert elsewhere.destination.folders == (paths.workspace(), tmp_path / "elsewhere")
    assert elsewhere.destination.named_store == str(tmp_path / "elsewhere")
    bucket = make_plan(DEMO, {"upload.store": "s3://bucket/prefix"})
    assert bucket.destination.folders == (paths.workspace(),)
    assert bucket.destination.named_store == "s3://bucket/prefix"


def test_a_mistake_in_a_file_that_the_config_names_shows_before_anything_starts(
    tmp_path: Path,
) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text("no item\n")
    with pytest.raises(LmflowsError, match=r"items\.jsonl"):
        make_plan(DEMO, {"evaluate.tasks": [str(items)]})
    assert not paths.home().exists()
