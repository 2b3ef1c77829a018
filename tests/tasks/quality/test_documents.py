"""Documents are read with their place in every error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.errors import SourceError
from configs.texts import TextFile
from tasks.quality.documents import read_source


def test_chats_and_texts_are_read_from_jsonl(tmp_path: Path) -> None:
    chat = {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    }
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": "naïve café", "id": 3}) + "\n\n" + json.dumps(chat) + "\n")
    assert list(read_source(TextFile(type="file", path=path))) == [{"text": "naïve café"}, chat]


@pytest.mark.parametrize(
    "line", ["{", '{"texts": "x"}', '{"messages": []}', '{"messages": [{"role": "user"}]}', "[1]"]
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(SourceError) as caught:
        list(read_source(TextFile(type="file", path=path)))
    assert caught.value.where == f"{path}:2"


def test_a_text_file_is_cut_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("one\ntwo\n\n \nthree\n")
    assert [record["text"] for record in read_source(TextFile(type="file", path=path))] == [
        "one\ntwo",
        "three\n",
    ]


def test_binary_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="UTF-8"):
        list(read_source(TextFile(type="file", path=path)))
