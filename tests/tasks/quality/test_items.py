"""Task items: what a file may say, what a real model answers, and what two sets of answers say
beside one another."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from artifacts.records.items import ItemOutcome
from artifacts.records.measurement import Scores
from configs.errors import SourceError
from tasks.engines.reference import ReferenceEngine
from tasks.quality.items import Item, compare_items, found_in, normalized, read_items, run_items
from tasks.quality.mcnemar import detectable_drop, holm, mcnemar

CHOICE = {
    "task": "python",
    "id": "list",
    "prompt": "A list is a mutable",
    "choices": ["sequence of objects.", "of sequence mutable."],
    "answer": 0,
}
CHAT = {
    "task": "chat",
    "id": "hello",
    "messages": [{"role": "user", "content": "hello"}],
    "answer": ["Hello! How can I help you today"],
}


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> ReferenceEngine:
    return ReferenceEngine(tiny_model)


def file(folder: Path, *records: object) -> Path:
    path = folder / "items.jsonl"
    path.write_text(
        "".join(
            (record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records
        ),
        encoding="utf-8",
    )
    return path


def item(**fields: Any) -> Item:
    return Item.model_validate({"task": "t", "id": "1"} | fields)


def nobody(_done: float, _text: str) -> None:
    pass


# -- reading


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


# -- asking


def choice_scores(engine: ReferenceEngine, text: str, choice: str) -> float:
    """Mean NLL per character of a choice after a text, straight from the definition."""
    context, whole = engine.tokenizer(text).input_ids, engine.tokenizer(text + choice).input_ids
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
    outcomes = run_items(engine, items, batch_size=5, saw=lambda done, _: said.append(done))
    for one, outcome in zip(items, outcomes, strict=True):
        assert one.choices is not None and (outcome.task, outcome.item, outcome.broken) == (
            "t",
            one.id,
            False,
        )
        best = min(
            one.choices,
            key=lambda choice: choice_scores(engine, "A list is a mutable", " " + choice),
        )
        assert outcome.answer == best and outcome.correct == (best == one.choices[0])
    assert outcomes[0].answer == "sequence of objects." and {
        outcome.correct for outcome in outcomes
    } == {True, False}
    assert said == sorted(said) and said[-1] == 1.0
    assert run_items(engine, items, batch_size=2, saw=nobody) == outcomes


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
        saw=nobody,
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
    from tasks.quality.items import _tokenized

    fields = {} if delimiter is None else {"delimiter": delimiter}
    ids, start = next(
        _tokenized(engine, item(prompt=prompt, choices=[choice, "other"], answer=0, **fields), 0)
    )
    assert engine.tokenizer.decode(ids) == joined and 0 < start < len(ids)


def test_a_chats_choices_are_scored_through_the_template_without_its_end(
    engine: ReferenceEngine,
) -> None:
    from tasks.quality.items import _template_tail, _tokenized

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
    assert [outcome.correct for outcome in run_items(engine, [chat], batch_size=4, saw=nobody)] == [
        True
    ]


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
    outcomes = {
        outcome.item: outcome for outcome in run_items(engine, items, batch_size=2, saw=nobody)
    }
    assert [outcome.item for outcome in run_items(engine, items, batch_size=3, saw=nobody)] == [
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


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("Paris.", "paris", True),
        ("  the  \u201cBig\u201d Apple! ", "The big apple", True),
        ("\uff21\uff22\uff23", "abc", True),
        ("$1,000", "1000", True),
        ("1,000,000.", "1000000", True),
        ("3.5", "35", False),
        ("-5", "5", False),
        ("-5", "\u22125", True),
        (".5", "5", False),
        ("1-5", "15", False),
        ("10:30", "1030", False),
        ("1/2", "12", False),
        ("\u5317\u4eac\u3002", "\u5317\u4eac", True),
        ("a_b", "a b", True),
        ("2, 3", "23", False),
        ("x=-5", "x=5", False),
        ("42.", "42", True),
    ],
)
def test_what_makes_no_other_answer(left: str, right: str, same: bool) -> None:
    assert (normalized(left) == normalized(right)) is same


@given(st.text())
def test_normalizing_again_changes_nothing(text: str) -> None:
    once = normalized(text)
    assert once == once.strip() and normalized(once) == once


@pytest.fixture
def ruined(tiny_model: Path, tmp_path: Path) -> Callable[[str], ReferenceEngine]:
    """A copy of the model in which one tensor is NaN."""
    import shutil

    from safetensors.torch import load_file, save_file

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
    parent, candidate = (
        run_items(engine, items, batch_size=2, saw=nobody),
        run_items(ruined("model.norm.weight"), items, batch_size=2, saw=nobody),
    )
    assert [outcome.correct for outcome in parent] == [True, True]
    assert [(outcome.correct, outcome.broken) for outcome in candidate] == [
        (False, True),
        (False, True),
    ]
    assert [
        (task.lost, task.broken_parent, task.broken_candidate)
        for task in compare_items(parent, candidate)
    ] == [(1, 0, 1), (1, 0, 1)]


# -- statistics


def test_mcnemars_test_gives_the_textbooks_figures() -> None:
    # Agresti, Categorical Data Analysis, on the approval of a prime minister: 150 changed one way
    # and 86 the other; z = 4.17
    exact = sum(math.comb(236, lost) for lost in range(150, 237)) / 2**236
    assert mcnemar(150, 86) == pytest.approx((2 * exact, exact)) and mcnemar(150, 86)[
        1
    ] == pytest.approx(norm.sf(4.17), rel=0.25)
    # by hand: 2 (1 + 12 + 66) / 2**12
    assert mcnemar(10, 2) == pytest.approx((158 / 4096, 79 / 4096))
    assert mcnemar(5, 0) == (0.0625, 0.03125)
    assert mcnemar(0, 5) == (0.0625, 1.0)
    assert mcnemar(0, 0) == (1.0, 1.0)


def test_holms_adjustment_gives_the_known_figures() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.6, 0.9]) == pytest.approx((1.0, 1.0))
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.2))
def test_holm_rejects_what_its_steps_reject(p_values: list[float], alpha: float) -> None:
    rejected = set[int]()
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        if p_values[number] * (len(p_values) - rank) > alpha:
            break
        rejected.add(number)
    assert {number for number, p in enumerate(holm(p_values)) if p <= alpha} == rejected


@pytest.mark.parametrize("n", [500, 767, 3085, 14042])
def test_the_smallest_detectable_drop_is_the_normal_approximations(n: int) -> None:
    """n = (z_a sqrt(f) + z_b sqrt(f - d^2))^2 / d^2, Connor, Biometrics 43 (1987); the exact test
    is a little conservative."""
    drop, rate = detectable_drop(n, round(0.05 * n)), 0.05
    assert drop is not None
    needed = (
        norm.ppf(0.95) * math.sqrt(rate) + norm.ppf(0.8) * math.sqrt(rate - drop**2)
    ) ** 2 / drop**2
    assert needed == pytest.approx(n, rel=0.1) and needed <= n


def test_the_smallest_detectable_drop_is_found_four_times_out_of_five() -> None:
    rng, n, flips = np.random.default_rng(0), 400, 40
    drop = detectable_drop(n, flips)
    assert drop is not None
    found = 0
    for _ in range(500):
        count = rng.binomial(n, flips / n)
        lost = rng.binomial(count, (flips / n + drop) / (2 * flips / n))
        found += mcnemar(lost, count - lost)[1] <= 0.05
    assert 0.74 < found / 500 < 0.86


def test_too_few_items_detect_nothing() -> None:
    assert [detectable_drop(n, 0) for n in (0, 4)] == [None, None]
    # all five must be lost: 1/32 is the first tail below 5 %
    assert detectable_drop(5, 0) == pytest.approx(0.8 ** (1 / 5), abs=1e-3)
    assert detectable_drop(5, 0, alpha=0.01) is None


# -- comparing


def outcomes(task: str, right: str) -> list[ItemOutcome]:
    return [
        ItemOutcome(task=task, item=str(number), correct=sign == "+", answer="", broken=sign == "!")
        for number, sign in enumerate(right)
        if sign != " "
    ]


def test_flips_both_ways_are_counted_task_by_task() -> None:
    parent = outcomes("a", "+" * 10 + "-" * 10) + outcomes("b", "+" * 20)
    candidate = outcomes("b", "+" * 15 + "-" * 5) + outcomes("a", "+" * 8 + "-" * 2 + "+" + "-" * 9)
    first, second = compare_items(parent, candidate)
    assert (
        first.task,
        first.n,
        first.parent_correct,
        first.candidate_correct,
        first.lost,
        first.gained,
    ) == ("a", 20, 10, 9, 2, 1)
    assert (
        second.task,
        second.lost,
        second.gained,
        second.parent_accuracy,
        second.candidate_accuracy,
    ) == ("b", 5, 0, 1.0, 0.75)
    assert (
        second.p_worse == 0.03125
        and second.p_worse_holm == 0.0625
        and first.p_worse_holm == first.p_worse == 0.5
    )
    assert first.flip_rate == 0.15 and second.detectable_drop is not None
    [alone] = compare_items(outcomes("b", "+" * 20), outcomes("b", "+" * 15 + "-" * 5))
    assert (
        alone.p_worse_holm == 0.03125 and (alone.detectable_drop or 0) < second.detectable_drop
    ), "one test need not share its level"


def test_equal_accuracy_does_not_hide_flips() -> None:
    [task] = compare_items(outcomes("a", "++++----"), outcomes("a", "--++++--"))
    assert (
        task.parent_accuracy,
        task.candidate_accuracy,
        task.lost,
        task.gained,
        task.p_two_sided,
    ) == (0.5, 0.5, 2, 2, 1.0)


def test_items_that_only_one_was_asked_are_shown_and_not_counted() -> None:
    tasks = {
        task.task: task
        for task in compare_items(
            outcomes("a", "++ +") + outcomes("b", "++"), outcomes("a", "+- -+") + outcomes("c", "-")
        )
    }
    assert {
        name: (task.n, task.lost, task.only_parent, task.only_candidate)
        for name, task in tasks.items()
    } == {"a": (3, 2, 0, 1), "b": (0, 0, 2, 0), "c": (0, 0, 0, 1)}
    assert (tasks["b"].p_worse_holm, tasks["b"].detectable_drop) == (1.0, None)
    assert tasks["a"].p_worse_holm == tasks["a"].p_worse, "tasks without a pair are no tests"


def test_an_item_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="item '0' of task 'a' appears twice"):
        compare_items(outcomes("a", "+") * 2, outcomes("a", "+"))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_the_other_way_round_is_the_mirror_image(pairs: list[tuple[bool, bool]]) -> None:
    sides = ["".join("+" if pair[side] else "-" for pair in pairs) for side in (0, 1)]
    there, back = (
        compare_items(outcomes("a", sides[0]), outcomes("a", sides[1])),
        compare_items(outcomes("a", sides[1]), outcomes("a", sides[0])),
    )
    for one, other in zip(there, back, strict=True):
        assert (one.lost, one.gained, one.parent_correct, one.p_two_sided) == (
            other.gained,
            other.lost,
            other.candidate_correct,
            other.p_two_sided,
        )
        assert one.candidate_correct - one.parent_correct == one.gained - one.lost
        assert one.p_worse + other.p_worse >= 1.0
