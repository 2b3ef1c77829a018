"""Shared by the tests of what the machine has."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tasks.machine import gpus, sampler
from tests.support.nvml import Board, Machine

Install = Callable[..., Machine]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a machine behind NVML; with the mask that a test wants, or none."""

    def put(*boards: Board, broken: str = "", mask: str | None = None) -> Machine:
        machine = Machine(*boards, broken=broken)
        for module in (gpus, sampler):
            monkeypatch.setattr(module, "pynvml", machine)
        if mask is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
        return machine

    return put
