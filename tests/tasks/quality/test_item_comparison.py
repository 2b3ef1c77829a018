"""Two sets of answers to the same items: flips both ways, and what only one was asked."""

# covers artifacts/records/items.py

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.records.items import ItemOutcome
from tasks.quality.item_comparison import compare_items


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
    left = outcomes("a", "".join("+" if first else "-" for first, _ in pairs))
    right = outcomes("a", "".join("+" if second else "-" for _, second in pairs))
    there = compare_items(left, right)
    back = compare_items(right, left)
    for one, other in zip(there, back, strict=True):
        assert (one.lost, one.gained, one.parent_correct, one.p_two_sided) == (
            other.gained,
            other.lost,
            other.candidate_correct,
            other.p_two_sided,
        )
        assert one.candidate_correct - one.parent_correct == one.gained - one.lost
        assert one.p_worse + other.p_worse >= 1.0
