"""Task items from a JSONL file, asked through an engine and compared in pairs. Of two kinds, one
object a line:

    {"task": "capitals", "prompt": "The capital of France is", "choices": ["Paris", "Rome"],
    "answer": 0} {"task": "sums", "messages": [{"role": "user", "content": "What is 17 + 25?"}],
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
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from artifacts.manifest import digest_of
from artifacts.records.items import ItemOutcome, TaskComparison
from configs.errors import SourceError
from tasks.engines.protocol import Engine
from tasks.quality.mcnemar import detectable_drop, holm, mcnemar

Saw = Callable[[float, str], None]
Text = Annotated[str, Field(min_length=1)]
SHAPE = (
    'each line is {"task", "prompt" or "messages", "choices": [...], "answer": index} or '
    '{"task", "prompt" or "messages", "answer": text or [texts]}'
)
ALPHA = 0.05


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
        if self.choices is None:
            if isinstance(self.answer, int):
                raise ValueError(
                    "answer is a number, and there are no choices that it could be the index of"
                )
        elif (
            isinstance(self.answer, bool)
            or not isinstance(self.answer, int)
            or not 0 <= self.answer < len(self.choices)
        ):
            raise ValueError(
                f"answer is the index of the right choice, 0 to {len(self.choices) - 1}, not"
                f" {self.answer!r}"
            )
        elif self.extract is not None:
            raise ValueError("extract belongs to items without choices")
        elif len(set(self.choices)) < len(self.choices):
            raise ValueError("two choices are the same")
        return self

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


# -- reading


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
        raise SourceError(
            f"{place + ': ' if place else ''}{problem['msg'].removeprefix('Value error, ')}",
            where=where,
            hint=SHAPE,
        ) from None


# -- asking


def run_items(
    engine: Engine, items: Sequence[Item], *, batch_size: int, saw: Saw
) -> tuple[ItemOutcome, ...]:
    """Ask an engine all items; their outcomes in the same order.

    Args:
        batch_size: sequences scored, or prompts answered, at once.
        saw: hears the share that is done, 0 to 1, and what that is.

    Raises:
        SourceError: an item that the model's tokenizer or chat template cannot represent.
    """
    choices = [number for number, item in enumerate(items) if item.choices is not None]
    answers = [number for number, item in enumerate(items) if item.choices is None]
    share = len(choices) / max(1, len(items))
    found = dict(
        zip(
            choices,
            _choose(
                engine,
                [items[number] for number in choices],
                batch_size,
                lambda done, text: saw(done * share, text),
            ),
            strict=True,
        )
    )
    found |= dict(
        zip(
            answers,
            _answer(
                engine,
                [items[number] for number in answers],
                batch_size,
                lambda done, text: saw(share + done * (1 - share), text),
            ),
            strict=True,
        )
    )
    return tuple(found[number] for number in range(len(items)))


def _choose(engine: Engine, items: Sequence[Item], batch_size: int, saw: Saw) -> list[ItemOutcome]:
    tail = _template_tail(engine) if any(item.messages for item in items) else 0
    sequences = [pair for item in items for pair in _tokenized(engine, item, tail)]
    # batches of equal lengths waste no padding
    order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number][0]))
    sums = np.empty(len(sequences))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = [sequences[number][0] for number in numbers]
        # the distributions are not wanted: kept at one token each, they cost nothing to send
        scores = engine.score(batch, [np.array(ids[1:], dtype=np.int32)[:, None] for ids in batch])
        for number, score in zip(numbers, scores, strict=True):
            sums[number] = score.nll[sequences[number][1] - 1 :].sum()
        saw(
            (start + len(numbers)) / len(order),
            f"scored {start + len(numbers)}/{len(order)} choices",
        )
    outcomes, first = [], 0
    for item in items:
        assert item.choices is not None
        found = sums[first : first + len(item.choices)] / [len(choice) for choice in item.choices]
        first += len(item.choices)
        broken = not bool(np.isfinite(found).all())
        chosen = "" if broken else item.choices[int(found.argmin())]
        outcomes.append(
            ItemOutcome(
                task=item.task,
                item=item.id,
                correct=chosen in item.right,
                answer=chosen,
                broken=broken,
            )
        )
    return outcomes


def _tokenized(engine: Engine, item: Item, tail: int) -> Iterator[tuple[list[int], int]]:
    """For each choice the token ids of the question with it, and where the choice begins there.

    The whole is tokenized and compared with the question alone: a token across the boundary belongs
    to the choice.
    """
    assert item.choices is not None
    context = (
        engine.prompt_ids(item.chat) if item.messages else engine.encode({"text": item.prompt})
    )
    for choice in item.choices:
        if item.messages:
            whole = engine.encode(
                {"messages": [*item.chat, {"role": "assistant", "content": choice}]}
            )
            whole = whole[: len(whole) - tail]
        else:
            assert item.prompt is not None
            joined = "" if item.prompt[-1].isspace() or choice[0].isspace() else item.delimiter
            whole = engine.encode({"text": item.prompt + joined + choice})
        start = max(1, _common(context, whole))
        if start >= len(whole):
            raise SourceError(
                f"the tokenizer gives choice {choice!r} no tokens of its own",
                where=f"task {item.task}, item {item.id}",
                hint="choices must not be empty for the model's tokenizer; change the item",
            )
        yield whole, start


def _template_tail(engine: Engine) -> int:
    """How many tokens the chat template puts behind an assistant's words. They are no part of a
    choice."""
    one, other = (
        [
            *reversed(
                engine.encode(
                    {
                        "messages": [
                            {"role": "user", "content": "?"},
                            {"role": "assistant", "content": text},
                        ]
                    }
                )
            )
        ]
        for text in ("no", "yes")
    )
    return _common(one, other)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next(
        (
            number
            for number, (left, right) in enumerate(zip(one, other, strict=False))
            if left != right
        ),
        min(len(one), len(other)),
    )


def _answer(engine: Engine, items: Sequence[Item], batch_size: int, saw: Saw) -> list[ItemOutcome]:
    by_length: Mapping[int, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        by_length[item.max_new_tokens].append(number)
    outcomes: dict[int, ItemOutcome] = {}
    for length in sorted(by_length):
        for start in range(0, len(by_length[length]), batch_size):
            numbers = by_length[length][start : start + batch_size]
            prompts = [
                (
                    engine.prompt_ids(items[number].chat)
                    if items[number].messages
                    else engine.encode({"text": items[number].prompt})
                )
                for number in numbers
            ]
            for number, answer in zip(numbers, engine.generate(prompts, length), strict=True):
                item, text = items[number], found_in(items[number], answer.text)
                outcomes[number] = ItemOutcome(
                    task=item.task,
                    item=item.id,
                    answer=text,
                    broken=answer.finite is False,
                    correct=answer.finite is not False
                    and normalized(text) in map(normalized, item.right),
                )
            saw(len(outcomes) / len(items), f"answered {len(outcomes)}/{len(items)} questions")
    return [outcomes[number] for number in range(len(items))]


def found_in(item: Item, text: str) -> str:
    """The part of an answer that is compared; empty if `extract` does not match."""
    if item.extract is not None:
        match = re.search(item.extract, text)
        return "" if match is None else (match.group(1) or "" if match.re.groups else match.group())
    return text.strip() if item.messages else text.strip().partition("\n")[0]


def normalized(text: str) -> str:
    """Without what does not make an answer another one: case, spaces, width, punctuation and
    currency signs outside numbers, the commas of thousands. Signs and decimal points of numbers
    stay."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).replace("\N{MINUS SIGN}", "-")
    text = re.sub(
        r"(?<![\w)])-(?=\.?\d)|(?<=\d)[.,:/](?=\d)|(?<!\w)\.(?=\d)",
        lambda match: chr(0xE000 + ord(match.group())),
        text,
    )
    text = "".join(
        " " if unicodedata.category(character) in PUNCTUATION else character for character in text
    )
    text = re.sub("[\ue000-\ue0ff]", lambda match: chr(ord(match.group()) - 0xE000), text)
    return " ".join(text.split())


PUNCTUATION = frozenset({"Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sc"})


# -- comparing


def compare_items(
    parent: Sequence[ItemOutcome], candidate: Sequence[ItemOutcome], *, alpha: float = ALPHA
) -> tuple[TaskComparison, ...]:
    """Compare two models task by task on the items that both were asked; tasks in their order of
    appearance.

    Args:
        alpha: level of the one-sided test over all tasks. The smallest detectable drops are those
            at alpha over the number of tasks, which is what Holm's method asks of the first of
            them.

    Raises:
        ValueError: an item appears twice under one model.
    """
    left, right = _by_task(parent), _by_task(candidate)
    tasks = list(dict.fromkeys([*left, *right]))
    pairs = {
        task: [(one, right[task][item]) for item, one in left[task].items() if item in right[task]]
        for task in tasks
    }
    flips = {
        task: (
            sum(one.correct and not other.correct for one, other in pairs[task]),
            sum(other.correct and not one.correct for one, other in pairs[task]),
        )
        for task in tasks
    }
    tests = {task: mcnemar(*flips[task]) for task in tasks}
    tested = [task for task in tasks if pairs[task]]
    adjusted = dict(zip(tested, holm([tests[task][1] for task in tested]), strict=True))
    return tuple(
        TaskComparison(
            task=task,
            n=len(pairs[task]),
            parent_correct=sum(one.correct for one, _ in pairs[task]),
            candidate_correct=sum(other.correct for _, other in pairs[task]),
            lost=flips[task][0],
            gained=flips[task][1],
            broken_parent=sum(one.broken for one, _ in pairs[task]),
            broken_candidate=sum(other.broken for _, other in pairs[task]),
            p_two_sided=tests[task][0],
            p_worse=tests[task][1],
            p_worse_holm=adjusted.get(task, 1.0),
            detectable_drop=detectable_drop(
                len(pairs[task]), sum(flips[task]), alpha=alpha / max(1, len(tested))
            ),
            only_parent=len(left[task].keys() - right[task].keys()),
            only_candidate=len(right[task].keys() - left[task].keys()),
        )
        for task in tasks
    )


def _by_task(outcomes: Sequence[ItemOutcome]) -> Mapping[str, dict[str, ItemOutcome]]:
    found: defaultdict[str, dict[str, ItemOutcome]] = defaultdict(dict)
    for outcome in outcomes:
        if outcome.item in found[outcome.task]:
            raise ValueError(f"item {outcome.item!r} of task {outcome.task!r} appears twice")
        found[outcome.task][outcome.item] = outcome
    return found
