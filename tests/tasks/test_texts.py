"""Texts: documents are read with their place in every error, and no passage is both calibrated with
and held out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from artifacts.store.local import LocalStore
from configs.errors import SourceError
from configs.texts import PythonDocs, TextFile, Texts
from tasks.runner.step import Context
from tasks.texts import (
    CALIBRATION,
    HELD_OUT,
    SHARED_WORDS,
    TextsRequest,
    load_records,
    read,
    split,
    texts,
    unique,
    words,
)


def make(tmp_path: Path, config: Texts) -> tuple[list[dict], list[dict], str]:  # type: ignore[type-arg]
    result = texts(TextsRequest(config=config), Context(LocalStore(tmp_path / "store")))
    folder = result.texts.path
    return load_records(folder / CALIBRATION), load_records(folder / HELD_OUT), result.texts.digest


def grams(records: list[dict]) -> set[tuple[str, ...]]:  # type: ignore[type-arg]
    return {
        tuple(w[i : i + SHARED_WORDS])
        for record in records
        for w in [words(record)]
        for i in range(len(w) - SHARED_WORDS + 1)
    }


def test_pythons_own_docs_split_without_a_shared_passage(tmp_path: Path) -> None:
    calibration, held_out, _ = make(
        tmp_path, Texts(source=PythonDocs(type="python_docs"), held_out_documents=16)
    )
    assert len(held_out) == 16 and len(calibration) > 16
    assert len(grams(held_out)) > 1000
    assert not grams(calibration) & grams(held_out)


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


def test_the_same_seed_gives_the_same_digest_and_another_seed_another(tmp_path: Path) -> None:
    source = PythonDocs(type="python_docs")
    first, again, other = (make(tmp_path, Texts(source=source, seed=seed))[2] for seed in (0, 0, 1))
    assert first == again != other


def test_repeated_and_empty_documents_are_dropped() -> None:
    assert list(unique([{"text": "One two."}, {"text": " one TWO "}, {"text": "  "}])) == [
        {"text": "One two."}
    ]


def test_too_few_documents_say_so() -> None:
    with pytest.raises(SourceError, match="too few to hold out 3"):
        split([{"text": f"w{i}"} for i in range(3)], 3, 0, where="here")


def test_chats_and_texts_are_read_from_jsonl(tmp_path: Path) -> None:
    chat = {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    }
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": "naïve café", "id": 3}) + "\n\n" + json.dumps(chat) + "\n")
    assert list(read(TextFile(type="file", path=path))) == [{"text": "naïve café"}, chat]


@pytest.mark.parametrize(
    "line", ["{", '{"texts": "x"}', '{"messages": []}', '{"messages": [{"role": "user"}]}', "[1]"]
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(SourceError) as caught:
        list(read(TextFile(type="file", path=path)))
    assert caught.value.where == f"{path}:2"


def test_a_text_file_is_cut_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("one\ntwo\n\n \nthree\n")
    assert [record["text"] for record in read(TextFile(type="file", path=path))] == [
        "one\ntwo",
        "three\n",
    ]


def test_binary_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="UTF-8"):
        list(read(TextFile(type="file", path=path)))


def test_separators_that_json_allows_do_not_cut_a_record(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    records = [
        {"text": f"document {i} with\u2028another line\u0085and more {i * 7919}"} for i in range(6)
    ]
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records),
        encoding="utf-8",
    )
    calibration, held_out, _ = make(
        tmp_path, Texts(source=TextFile(type="file", path=path), held_out_documents=2)
    )
    assert sorted(r["text"] for r in calibration + held_out) == sorted(r["text"] for r in records)


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
