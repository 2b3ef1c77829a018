"""Task items, read from a JSONL file: what may be asked, and which answer is right.

`tasks.quality.item_answers` asks them, `tasks.quality.item_comparison` compares two models'
answers. Items are of two kinds, one object a line:

    {"task": "capitals", "prompt": "The capital of France is",
     "choices": ["Paris", "Rome"], "answer": 0}
    {"task": "sums", "messages": [{"role": "user", "content": "What is 17 + 25?"}],
     "answer": "42", "extract": "-?\\\\d+"}

Multiple choice: the choice whose tokens have the highest mean log-likelihood per character, which
is lm-evaluation-harness's `acc_norm`. Sums alone favour short choices, and means per token those
that the tokenizer cuts into many predictable pieces.

Exact match: greedy decoding; an answer counts if it is one of `answer` but for case, spaces,
punctuation and the commas of thousands. Of a `prompt`'s answer the first line is compared, since a
base model goes on with questions of its own; of a chat's all of it; with `extract` the expression's
first match in it, or that match's first group.

Optional: `id` (default: a digest of the line), `max_new_tokens` (32), `delimiter`, which joins a
prompt and a choice: a space unless one of them brings it, as in lm-evaluation-harness. `messages`
go through the model's own chat template.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from artifacts.manifest import digest_of
from configs.errors import SourceError

Text = Annotated[str, Field(min_length=1)]
SHAPE = (
    'each line is {"task", "prompt" or "messages", "choices": [...], "answer": index} or '
    '{"task", "prompt" or "messages", "answer": text or [texts]}'
)


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Text
    content: str


class Item(BaseModel):
    """One question: multiple choice if it has `choices`, else exact match."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    task: Text
    id: Text
    prompt: Text | None = None
    messages: Annotated[tuple[Message, ...], Field(min_length=1, strict=False)] | None = None
    choices: Annotated[tuple[Text, ...], Field(min_length=2, strict=False)] | None = None
    answer: int | Text | Annotated[tuple[Text, ...], Field(min_length=1, strict=False)]
    delimiter: str = " "
    max_new_tokens: int = Field(default=32, ge=1)
    extract: str | None = None

    @field_validator("extract")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _agrees(self) -> Item:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        if self.choices is not None:
            self._require_choice(self.choices)
        elif isinstance(self.answer, int):
            raise ValueError(
                "answer is a number, and there are no choices that it could be the index of"
            )
        return self

    def _require_choice(self, choices: tuple[str, ...]) -> None:
        an_index = isinstance(self.answer, int) and not isinstance(self.answer, bool)
        if not an_index or self.answer not in range(len(choices)):
            raise ValueError(
                f"answer is the index of the right choice, 0 to {len(choices) - 1}, not"
                f" {self.answer!r}"
            )
        if self.extract is not None:
            raise ValueError("extract belongs to items without choices")
        if len(set(choices)) < len(choices):
            raise ValueError("two choices are the same")

    @property
    def right(self) -> tuple[str, ...]:
        """The accepted texts."""
        if isinstance(self.answer, int):
            assert self.choices is not None
            return (self.choices[self.answer],)
        return (self.answer,) if isinstance(self.answer, str) else self.answer

    @property
    def chat(self) -> list[dict[str, str]]:
        return [message.model_dump() for message in self.messages or ()]


def read_items(path: Path) -> tuple[Item, ...]:
    """The items of a JSONL file, in its order.

    Raises:
        SourceError: no file, not UTF-8, no items; a line that is not an item; an id that its task
            has already.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"cannot be read as UTF-8 text: {error}", where=str(path), hint="give a JSONL file"
        ) from None
    seen: dict[tuple[str, str], int] = {}
    items = []
    # splitlines() would also cut at U+2028, which JSON allows inside a text
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        item = _item(line, f"{path}:{number}")
        first = seen.setdefault((item.task, item.id), number)
        if first != number:
            raise SourceError(
                f"task {item.task!r} has item {item.id!r} in line {first} already",
                where=f"{path}:{number}",
                hint="give each item another id, and each question once",
            )
        items.append(item)
    if not items:
        raise SourceError("has no items", where=str(path), hint=SHAPE)
    return tuple(items)


def _item(line: str, where: str) -> Item:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise SourceError(f"not JSON: {error}", where=where, hint=SHAPE) from None
    if not isinstance(record, dict):
        raise SourceError(f"a {type(record).__name__}, not an object", where=where, hint=SHAPE)
    values: dict[str, Any] = {"id": digest_of(record)[:12]} | record
    if isinstance(values["id"], int) and not isinstance(values["id"], bool):
        values["id"] = str(values["id"])
    try:
        return Item.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise SourceError(
            f"{place}: {message}" if place else message, where=where, hint=SHAPE
        ) from None
