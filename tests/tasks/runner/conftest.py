"""Shared by the tests of runtimes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.runner import runtime_probe


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> None:
    """A cache of its own, and a child that needs no more than what the small lock has."""
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(runtime_probe, "NEEDS", ("lmdeploy", "tasks.runner.child"))


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(home: Path) -> Path:
    (home / "runtimes").mkdir(parents=True)
    return home / "runtimes"
