"""Task items asked through an engine: which choice it finds likeliest, what it answers, and whether
that is right.

Knows nothing of files and of other models' answers: `tasks.quality.items` and
`tasks.quality.item_comparison` do.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from artifacts.records.items import ItemOutcome
from configs.callbacks import Progress
from configs.errors import SourceError
from tasks.engines.protocol import Engine, Generation
from tasks.quality.answer_text import normalized
from tasks.quality.items import Item


def run_items(
    engine: Engine, items: Sequence[Item], *, batch_size: int, progress: Progress
) -> tuple[ItemOutcome, ...]:
    """Ask an engine all items; their outcomes in the same order.

    Args:
        batch_size: sequences scored, or prompts answered, at once.

    Raises:
        SourceError: an item that the model's tokenizer or chat template cannot represent.
    """
    with_choices = [number for number, item in enumerate(items) if item.choices is not None]
    without = [number for number, item in enumerate(items) if item.choices is None]
    share = len(with_choices) / max(1, len(items))
    chosen = _choose(
        engine,
        [items[number] for number in with_choices],
        batch_size,
        lambda done, text: progress(done * share, text),
    )
    answered = _answer(
        engine,
        [items[number] for number in without],
        batch_size,
        lambda done, text: progress(share + done * (1 - share), text),
    )
    outcomes = dict(zip([*with_choices, *without], [*chosen, *answered], strict=True))
    return tuple(outcomes[number] for number in range(len(items)))


# -- multiple choice


def _choose(
    engine: Engine, items: Sequence[Item], batch_size: int, progress: Progress
) -> list[ItemOutcome]:
    tail = _template_tail(engine) if any(item.messages for item in items) else 0
    sequences = [pair for item in items for pair in _tokenized(engine, item, tail)]
    sums = _choice_sums(engine, sequences, batch_size, progress)
    outcomes = []
    first = 0
    for item in items:
        assert item.choices is not None
        end = first + len(item.choices)
        outcomes.append(_likeliest(item, sums[first:end]))
        first = end
    return outcomes


def _choice_sums(
    engine: Engine,
    sequences: Sequence[tuple[list[int], int]],
    batch_size: int,
    progress: Progress,
) -> npt.NDArray[np.float64]:
    """Of each (token ids, where the choice begins): the sum of the choice's NLL, in nats."""
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
        done = start + len(numbers)
        progress(done / len(order), f"scored {done}/{len(order)} choices")
    return sums


def _likeliest(item: Item, sums: npt.NDArray[np.float64]) -> ItemOutcome:
    assert item.choices is not None
    per_character = sums / [len(choice) for choice in item.choices]
    broken = not bool(np.isfinite(per_character).all())
    chosen = "" if broken else item.choices[int(per_character.argmin())]
    return ItemOutcome(
        task=item.task,
        item=item.id,
        correct=chosen in item.right,
        answer=chosen,
        broken=broken,
    )


def _tokenized(engine: Engine, item: Item, tail: int) -> Iterator[tuple[list[int], int]]:
    """For each choice the token ids of the question with it, and where the choice begins there.

    The whole is tokenized and compared with the question alone: a token across the boundary belongs
    to the choice.

    Args:
        tail: tokens of the chat template behind an assistant's words (`_template_tail`).
    """
    assert item.choices is not None
    question = _question_ids(engine, item)
    for choice in item.choices:
        whole = _with_choice(engine, item, choice, tail)
        start = max(1, _common_length(question, whole))
        if start >= len(whole):
            raise SourceError(
                f"the tokenizer gives choice {choice!r} no tokens of its own",
                where=f"task {item.task}, item {item.id}",
                hint="choices must not be empty for the model's tokenizer; change the item",
            )
        yield whole, start


def _question_ids(engine: Engine, item: Item) -> list[int]:
    if item.messages:
        return engine.prompt_ids(item.chat)
    return engine.encode({"text": item.prompt})


def _with_choice(engine: Engine, item: Item, choice: str, tail: int) -> list[int]:
    if item.messages:
        whole = engine.encode({"messages": [*item.chat, {"role": "assistant", "content": choice}]})
        return whole[: len(whole) - tail]
    assert item.prompt is not None
    spaced = item.prompt[-1].isspace() or choice[0].isspace()
    return engine.encode({"text": item.prompt + ("" if spaced else item.delimiter) + choice})


def _template_tail(engine: Engine) -> int:
    """How many tokens the chat template puts behind an assistant's words. They are no part of a
    choice."""
    no = engine.encode(_exchange("no"))
    yes = engine.encode(_exchange("yes"))
    return _common_length(no[::-1], yes[::-1])


def _exchange(answer: str) -> dict[str, object]:
    return {
        "messages": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": answer},
        ]
    }


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    shorter = min(len(left), len(right))
    return next((place for place in range(shorter) if left[place] != right[place]), shorter)


# -- exact match


def _answer(
    engine: Engine, items: Sequence[Item], batch_size: int, progress: Progress
) -> list[ItemOutcome]:
    by_length: Mapping[int, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        by_length[item.max_new_tokens].append(number)
    outcomes: dict[int, ItemOutcome] = {}
    for length in sorted(by_length):
        for start in range(0, len(by_length[length]), batch_size):
            numbers = by_length[length][start : start + batch_size]
            prompts = [_question_ids(engine, items[number]) for number in numbers]
            answers = engine.generate(prompts, length)
            for number, answer in zip(numbers, answers, strict=True):
                outcomes[number] = _compared(items[number], answer)
            progress(len(outcomes) / len(items), f"answered {len(outcomes)}/{len(items)} questions")
    return [outcomes[number] for number in range(len(items))]


def _compared(item: Item, answer: Generation) -> ItemOutcome:
    text = found_in(item, answer.text)
    broken = answer.finite is False
    accepted = [normalized(right) for right in item.right]
    return ItemOutcome(
        task=item.task,
        item=item.id,
        answer=text,
        broken=broken,
        correct=not broken and normalized(text) in accepted,
    )


def found_in(item: Item, text: str) -> str:
    """The part of an answer that is compared; empty if `extract` does not match."""
    if item.extract is not None:
        match = re.search(item.extract, text)
        if match is None:
            return ""
        return (match.group(1) or "") if match.re.groups else match.group()
    if item.messages:
        return text.strip()
    return text.strip().partition("\n")[0]
