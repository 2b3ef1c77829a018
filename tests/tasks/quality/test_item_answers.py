"""What a real model answers to task items: choices by their likelihood, answers by their text."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.torch import load_file, save_file

from artifacts.records.measurement import Scores
from configs.callbacks import no_progress
from tasks.engines.reference import ReferenceEngine
from tasks.quality.item_answers import _template_tail, _tokenized, found_in, run_items
from tasks.quality.item_comparison import compare_items
from tasks.quality.items import Item
from tests.support.task_items import CHAT, CHOICE, item


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> ReferenceEngine:
    return ReferenceEngine(tiny_model)


def choice_scores(engine: ReferenceEngine, text: str, choice: str) -> float:
    """Mean NLL per character of a choice after a text, straight from the definition."""
    context = engine.tokenizer(text).input_ids
    whole = engine.tokenizer(text + choice).input_ids
    assert whole[: len(context)] == context, "the boundary is one between tokens"
    return float(engine.score([whole])[0].nll[len(context) - 1 :].sum()) / len(choice.lstrip())


def test_the_likeliest_choice_per_character_is_chosen(engine: ReferenceEngine) -> None:
    texts = ["sequence of objects.", "of sequence mutable.", "sequence", "zzzz"]
    items = [
        item(id=str(number), prompt="A list is a mutable", choices=[left, right], answer=0)
        for number, (left, right) in enumerate(
            [(left, right) for left in texts for right in texts if left != right]
        )
    ]
    said: list[float] = []
    outcomes = run_items(engine, items, batch_size=5, progress=lambda done, _: said.append(done))
    for asked, outcome in zip(items, outcomes, strict=True):
        assert asked.choices is not None and (outcome.task, outcome.item, outcome.broken) == (
            "t",
            asked.id,
            False,
        )
        best = min(
            asked.choices,
            key=lambda choice: choice_scores(engine, "A list is a mutable", " " + choice),
        )
        assert outcome.answer == best and outcome.correct == (best == asked.choices[0])
    assert outcomes[0].answer == "sequence of objects." and {
        outcome.correct for outcome in outcomes
    } == {True, False}
    assert said == sorted(said) and said[-1] == 1.0
    assert run_items(engine, items, batch_size=2, progress=no_progress) == outcomes


def test_a_token_across_the_boundary_belongs_to_the_choice(engine: ReferenceEngine) -> None:
    sequences: list[list[int]] = []

    class Watching(ReferenceEngine):
        def __init__(self) -> None:
            self.tokenizer = engine.tokenizer

        def score(
            self, batch: Sequence[Sequence[int]], at: Sequence[npt.NDArray[np.int32]] | None = None
        ) -> list[Scores]:
            sequences.extend(map(list, batch))
            return engine.score(batch, at)

    run_items(
        Watching(),
        [item(prompt="the obj", choices=["ects", "ect"], answer=0, delimiter="")],
        batch_size=8,
        progress=no_progress,
    )
    assert sorted(map(engine.tokenizer.decode, sequences)) == ["the object", "the objects"]
    assert (
        engine.tokenizer("the object").input_ids[:2] != engine.tokenizer("the obj").input_ids[:2]
    ), "the boundary is inside a token here"


@pytest.mark.parametrize(
    ("prompt", "choice", "delimiter", "joined"),
    [
        ("Answer:", "Paris", None, "Answer: Paris"),
        ("Answer: ", "Paris", None, "Answer: Paris"),
        ("Answer:", " Paris", None, "Answer: Paris"),
        ("\u7b54\u6848", "\u5df4\u9ece", "", "\u7b54\u6848\u5df4\u9ece"),
        ("Answer:\n", "Paris", " ", "Answer:\nParis"),
    ],
)
def test_prompt_and_choice_are_joined_by_one_delimiter(
    engine: ReferenceEngine, prompt: str, choice: str, delimiter: str | None, joined: str
) -> None:
    fields = {} if delimiter is None else {"delimiter": delimiter}
    ids, start = next(
        _tokenized(engine, item(prompt=prompt, choices=[choice, "other"], answer=0, **fields), 0)
    )
    assert engine.tokenizer.decode(ids) == joined and 0 < start < len(ids)


def test_a_chats_choices_are_scored_through_the_template_without_its_end(
    engine: ReferenceEngine,
) -> None:
    chat = item(
        messages=CHAT["messages"],
        choices=["Hello! How can I help you today?", "A list is a mutable sequence"],
        answer=0,
    )
    tail = _template_tail(engine)
    for (ids, start), choice in zip(
        _tokenized(engine, chat, tail), chat.choices or (), strict=True
    ):
        assert engine.tokenizer.decode(ids[start:]) == choice
        assert ids[:start] == engine.prompt_ids([{"role": "user", "content": "hello"}])
    [outcome] = run_items(engine, [chat], batch_size=4, progress=no_progress)
    assert outcome.correct


def test_answers_are_compared_whole_or_by_their_first_line_or_as_extracted(
    engine: ReferenceEngine,
) -> None:
    items = [
        item(
            id="chat",
            messages=[{"role": "user", "content": "hello"}],
            answer=["no", "  hello how can i HELP you today "],
        ),
        item(
            id="extracted",
            messages=[{"role": "user", "content": "hello"}],
            answer="HELP",
            extract=r"can I (\w+)",
        ),
        item(
            id="wrong",
            messages=[{"role": "user", "content": "hello"}],
            answer="goodbye",
            max_new_tokens=4,
        ),
        item(
            id="absent", messages=[{"role": "user", "content": "hello"}], answer="x", extract=r"\d+"
        ),
    ]
    two_at_a_time = run_items(engine, items, batch_size=2, progress=no_progress)
    three_at_a_time = run_items(engine, items, batch_size=3, progress=no_progress)
    outcomes = {outcome.item: outcome for outcome in two_at_a_time}
    assert [outcome.item for outcome in three_at_a_time] == [
        "chat",
        "extracted",
        "wrong",
        "absent",
    ]
    assert {name: outcome.correct for name, outcome in outcomes.items()} == {
        "chat": True,
        "extracted": True,
        "wrong": False,
        "absent": False,
    }
    assert outcomes["extracted"].answer == "help" and outcomes["absent"].answer == ""
    assert found_in(item(prompt="Q", answer="a"), "\n Paris.\nQ: and Rome?") == "Paris."


@pytest.fixture
def ruined(tiny_model: Path, tmp_path: Path) -> Callable[[str], ReferenceEngine]:
    """A copy of the model in which one tensor is NaN."""

    def make(tensor: str) -> ReferenceEngine:
        folder = tmp_path / "ruined"
        shutil.copytree(tiny_model, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors[tensor].fill_(math.nan)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return ReferenceEngine(folder)

    return make


def test_a_model_of_nan_has_every_item_wrong_and_visibly_broken(
    engine: ReferenceEngine, ruined: Callable[[str], ReferenceEngine]
) -> None:
    items = [Item.model_validate(CHOICE), Item.model_validate(CHAT)]
    broken = ruined("model.norm.weight")
    parent = run_items(engine, items, batch_size=2, progress=no_progress)
    candidate = run_items(broken, items, batch_size=2, progress=no_progress)
    assert [outcome.correct for outcome in parent] == [True, True]
    assert [(outcome.correct, outcome.broken) for outcome in candidate] == [
        (False, True),
        (False, True),
    ]
    assert [
        (task.lost, task.broken_parent, task.broken_candidate)
        for task in compare_items(parent, candidate)
    ] == [(1, 0, 1), (1, 0, 1)]
