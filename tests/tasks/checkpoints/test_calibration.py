"""Calibration rows: drawn by the seed, through the model's own tokenizer and chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from configs.errors import SourceError
from tasks.checkpoints.calibration import calibration_rows


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def test_another_seed_draws_other_rows(tokenizer: Any) -> None:
    records = [{"text": " ".join(str(i) for i in range(2000))}]
    first, again, other = (
        calibration_rows(tokenizer, records, samples=4, length=16, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert all(len(row) == 16 for row in first)


def test_chats_go_through_the_models_template(tokenizer: Any) -> None:
    chat = {
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "Hello!"},
        ]
    }
    text = tokenizer.decode(
        calibration_rows(tokenizer, [chat] * 8, samples=1, length=64, seed=0)[0]
    )
    assert "<|im_start|>user\nhello<|im_end|>" in text


def test_too_little_text_says_how_much_there_is(tokenizer: Any) -> None:
    with pytest.raises(
        SourceError, match=r"gives 0 rows of 64 tokens, quantize\.samples asks for 4"
    ):
        calibration_rows(tokenizer, [{"text": "short"}], samples=4, length=64, seed=0)
