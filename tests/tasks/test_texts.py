"""Texts: no passage is both calibrated with and held out."""

# covers artifacts/records/texts.py

from __future__ import annotations

import json
from pathlib import Path

from artifacts.records.texts import CALIBRATION, HELD_OUT, read_documents
from artifacts.store.local import LocalStore
from configs.texts import PythonDocs, TextFile, Texts
from tasks.quality.passages import SHARED_WORDS, words
from tasks.runner.step import Context
from tasks.texts import TextsRequest, texts


def make(tmp_path: Path, config: Texts) -> tuple[list[dict], list[dict], str]:  # type: ignore[type-arg]
    result = texts(TextsRequest(config=config), Context(LocalStore(tmp_path / "store")))
    folder = result.texts.path
    return (
        read_documents(folder / CALIBRATION),
        read_documents(folder / HELD_OUT),
        result.texts.digest,
    )


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


def test_the_same_seed_gives_the_same_digest_and_another_seed_another(tmp_path: Path) -> None:
    source = PythonDocs(type="python_docs")
    first, again, other = (make(tmp_path, Texts(source=source, seed=seed))[2] for seed in (0, 0, 1))
    assert first == again != other


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
