"""Passages: no quotation is on both sides of a split, in any script."""

from __future__ import annotations

import random

import pytest

from configs.errors import SourceError
from tasks.quality.passages import SHARED_WORDS, split, unique


def test_a_planted_quotation_stays_on_one_side() -> None:
    rng = random.Random(3)
    records = [{"text": " ".join(str(rng.randrange(10**6)) for _ in range(60))} for _ in range(40)]
    passage = " ".join(str(rng.randrange(10**6)) for _ in range(SHARED_WORDS))
    for index in (5, 11, 29):
        records[index]["text"] += f" {passage} tail{index}"
    for seed in range(20):
        calibration, held_out = split(records, 8, seed, where="here")
        sides = {
            side
            for side, part in (("c", calibration), ("h", held_out))
            for record in part
            if passage in record["text"]
        }
        assert len(sides) == 1


def test_repeated_and_empty_documents_are_dropped() -> None:
    assert list(unique([{"text": "One two."}, {"text": " one TWO "}, {"text": "  "}])) == [
        {"text": "One two."}
    ]


def test_too_few_documents_say_so() -> None:
    with pytest.raises(SourceError, match="too few to hold out 3"):
        split([{"text": f"w{i}"} for i in range(3)], 3, 0, where="here")


def test_a_shared_system_message_is_no_shared_passage() -> None:
    system = {
        "role": "system",
        "content": (
            "you are a careful assistant who answers in short and plain words and never makes"
            " anything up"
        ),
    }
    records = [
        {"messages": [system, {"role": "user", "content": f"question {i}"}]} for i in range(30)
    ]
    assert len(split(records, 10, 0, where="here")[1]) == 10


def test_a_shared_chinese_passage_stays_on_one_side() -> None:
    passage = "中国科学院是国家科学技术方面最高学术机构"
    records = [
        {
            "text": (
                f"{passage}甲乙丙" if i in (3, 8) else f"第{i}篇文章讲的是完全不同的{i * 31}件事情"
            )
        }
        for i in range(20)
    ]
    for seed in range(10):
        calibration, _ = split(records, 6, seed, where="here")
        assert sum(passage in r["text"] for r in calibration) in (0, 2)
