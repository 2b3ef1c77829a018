"""The smoke test: a sane model speaks, and one that does not is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from artifacts.store.local import LocalStore
from configs.errors import SmokeTestFailed
from configs.evaluation import SmokeTest
from tasks.engines.protocol import Generation
from tasks.runner.step import Context
from tasks.smoke_test import SmokeTestRequest, endless_repetition, smoke_test, unwell
from tests.support.models import fetch, spoil


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def say(text: str, *, reason: str = "length", finite: bool = True) -> Generation:
    return Generation(text=text, tokens=9, finish_reason=reason, finite=finite, seconds=1.0)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (say("fine words", finite=False), "NaN"),
        (say(""), "empty"),
        (say("\ufffd\ufffd\ufffd ok"), "not text"),
        (say("one two " + "and again " * 12), "repeats 'and again'"),
        (say("!" * 60), "repeats '!'"),
        (say("no no " * 3 + "maybe " + "no no " * 12), "repeats 'no'"),
    ],
)
def test_an_unwell_answer_is_recognized(answer: Generation, problem: str) -> None:
    assert problem in (unwell(answer) or "")


@pytest.mark.parametrize(
    "text",
    [
        "Hello!",
        "1. Read. 2. Write. 3. Speak. 4. Listen.",
        "1. 1. 1. 2. 3. 4. 5. 6. 7. 8. 9. 10. 11.",
        "你好,我是助手。",
    ],
)
def test_a_sane_answer_is_well(text: str) -> None:
    assert unwell(say(text)) is None
    assert endless_repetition(text) is None


def test_a_finished_answer_may_repeat_itself() -> None:
    assert unwell(say("ha " * 20, reason="stop")) is None


def test_the_small_model_speaks(store: LocalStore, tiny_model: Path) -> None:
    result = smoke_test(
        SmokeTestRequest(model=fetch(store, tiny_model), config=SmokeTest()), Context(store)
    )
    assert result.turns[0].answer == "Hello! How can I help you today?"
    assert "practice speaking" in result.turns[1].answer
    assert result.tokens_per_second > 1 and result.peak_rss_bytes > 10**8


def test_nan_weights_fail_the_smoke_test(
    store: LocalStore, tiny_model: Path, tmp_path: Path
) -> None:
    folder = spoil(tiny_model, tmp_path / "model", lambda w: torch.full_like(w, float("nan")))
    with pytest.raises(SmokeTestFailed, match="NaN or infinite"):
        smoke_test(SmokeTestRequest(model=fetch(store, folder), config=SmokeTest()), Context(store))
