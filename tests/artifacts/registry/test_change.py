"""A stage that was moved is told as moved, whatever is found afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from artifacts.registry.refs import Ref, Registry, Stage
from configs.errors import TransferError
from tests.support.places import Place
from tests.support.promotions import now, up


def test_a_moved_stage_is_told_as_moved_whatever_comes_after_the_write(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = place.judged()

    def breaks(_digest: str) -> bool:
        raise TransferError("the connection failed", where="here")

    def gone(_digest: str) -> bool:
        return False

    append = Registry.append
    cases: list[tuple[Stage, Callable[[str], bool], str]] = [
        ("dev", breaks, "could not be asked.*connection failed"),
        ("staging", gone, "garbage collection has removed"),
    ]
    for stage, has, says in cases:
        with monkeypatch.context() as patch:

            def then(
                *args: Any,
                patch: pytest.MonkeyPatch = patch,
                has: Callable[[str], bool] = has,
                **more: Any,
            ) -> Ref:
                done = append(*args, **more)
                patch.setattr(place.store, "has", has)
                return done

            patch.setattr(Registry, "append", then)
            done = up(place, one.candidate, stage)
        assert done.moved and re.search(says, done.problem)
        assert now(place, stage) == one.candidate
