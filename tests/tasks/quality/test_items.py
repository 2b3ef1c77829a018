"""Task items: what a file of them may say, and how it is told what is wrong there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.errors import SourceError
from tasks.quality.items import read_items
from tests.support.task_items import CHAT, CHOICE


def file(folder: Path, *records: object) -> Path:
    path = folder / "items.jsonl"
    path.write_text(
        "".join(
            (record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records
        ),
        encoding="utf-8",
    )
    return path


def test_a_file_of_both_kinds_is_read(tmp_path: Path) -> None:
    choice, chat, unnamed = read_items(
        file(
            tmp_path,
            CHOICE,
            "",
            CHAT,
            {"task": "sums", "prompt": "1 + 1 =", "answer": "2\u20282", "id": 7},
        )
    )
    assert choice.choices == ("sequence of objects.", "of sequence mutable.") and choice.right == (
        "sequence of objects.",
    )
    assert chat.chat == CHAT["messages"] and chat.right == ("Hello! How can I help you today",)
    assert (unnamed.id, unnamed.right, unnamed.max_new_tokens) == ("7", ("2\u20282",), 32)


def test_an_item_without_an_id_keeps_its_name_wherever_it_stands(tmp_path: Path) -> None:
    one = {key: value for key, value in CHOICE.items() if key != "id"}
    alone = read_items(file(tmp_path, one))[0]
    behind = read_items(file(tmp_path, CHAT, dict(reversed(one.items()))))[1]
    assert alone.id == behind.id and len(alone.id) == 12
    assert read_items(file(tmp_path, one | {"answer": 1}))[0].id != alone.id


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "a list, not an object"),
        (CHOICE | {"answer": 2}, "answer is the index of the right choice, 0 to 1, not 2"),
        (CHOICE | {"answer": "sequence of objects."}, "answer is the index of the right choice"),
        (CHOICE | {"answer": True}, "answer"),
        (CHOICE | {"choices": ["a", "a"]}, "two choices are the same"),
        (CHOICE | {"choices": ["a"]}, "choices: Tuple should have at least 2 items"),
        (CHOICE | {"choices": ["a", ""]}, "choices.1: String should have at least 1 character"),
        (CHOICE | {"messages": CHAT["messages"]}, "give either prompt or messages"),
        (CHOICE | {"extract": "a"}, "extract belongs to items without choices"),
        (CHAT | {"answer": 3}, "there are no choices"),
        (CHAT | {"answer": []}, "answer"),
        (CHAT | {"extract": "("}, "extract: not a regular expression: "),
        (
            CHAT | {"max_new_tokens": 0},
            "max_new_tokens: Input should be greater than or equal to 1",
        ),
        (CHAT | {"messages": []}, "messages: Tuple should have at least 1 item"),
        (CHAT | {"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        (CHAT | {"target": "a"}, "target: Extra inputs are not permitted"),
        ({"prompt": "a", "answer": "b"}, "task: Field required"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path: Path, line: object, says: str) -> None:
    with pytest.raises(SourceError) as caught:
        read_items(file(tmp_path, CHOICE | {"id": "other"}, line))
    assert (
        str(caught.value).startswith(f"{tmp_path}/items.jsonl:2: ") and says in caught.value.message
    )
    assert "each line is" in caught.value.hint


def test_the_same_id_twice_is_refused_within_a_task_only(tmp_path: Path) -> None:
    assert len(read_items(file(tmp_path, CHOICE, CHOICE | {"task": "other"}))) == 2
    with pytest.raises(
        SourceError,
        match=(
            r"items.jsonl:3: task 'python' has item 'list' in line 1 already -> give each item"
            r" another id"
        ),
    ):
        read_items(file(tmp_path, CHOICE, "", CHOICE | {"answer": 1}))


def test_a_file_without_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no items"):
        read_items(file(tmp_path, "", "  "))
    with pytest.raises(SourceError, match="cannot be read"):
        read_items(tmp_path / "none.jsonl")
