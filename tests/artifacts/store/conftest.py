"""What the tests of stores share."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.store.local import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """An empty store in a folder."""
    return LocalStore(tmp_path / "store")
