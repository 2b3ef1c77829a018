"""Divergence: figures of known cases, and what is broken is counted and never averaged."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from artifacts.records.measurement import Scores
from tasks.engines.scoring import scores
from tasks.quality.divergence import compare, divergence, summarize_kl


def scored(
    probabilities: list[list[float]], targets: list[int], at: Scores | None = None
) -> Scores:
    """What the engines' own scoring says of a model that gives these probabilities, one row a
    position."""
    return scores(torch.tensor(probabilities).log(), [0, *targets], None if at is None else at.ids)


def kept(probabilities: list[list[float]], targets: list[int], ids: list[int]) -> Scores:
    """The same, with the distribution kept at one token a position."""
    return scores(
        torch.tensor(probabilities).log(), [0, *targets], np.array(ids, np.int32)[:, None]
    )


def test_figures_of_a_known_case() -> None:
    """Two positions, two words: parent (1/2, 1/2) then (3/4, 1/4); candidate (1/4, 3/4) twice;
    targets 0 and 0."""
    parent = scored([[0.5, 0.5], [0.75, 0.25]], [0, 0])
    score = compare(parent, scored([[0.25, 0.75], [0.25, 0.75]], [0, 0], at=parent))
    assert score.nll_parent == pytest.approx(-math.log(0.5) - math.log(0.75))
    assert score.nll_candidate == pytest.approx(-2 * math.log(0.25))
    kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3) + 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
    assert score.kl == pytest.approx(kl)
    assert (score.tokens, score.same_top, score.broken) == (2, 0, 0)


def test_what_is_not_kept_counts_as_one_event() -> None:
    """Three words, of which the parent's likeliest is kept: (1/2, 1/4, 1/4) beside (1/4, 1/2, 1/4)
    is (1/2, 1/2) beside (1/4, 3/4)."""
    score = compare(kept([[0.5, 0.25, 0.25]], [0], [0]), kept([[0.25, 0.5, 0.25]], [0], [0]))
    assert score.kl == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


@pytest.mark.parametrize("spoilt_is_parent", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_position_with_nan_is_counted_and_not_averaged(
    value: float, spoilt_is_parent: bool
) -> None:
    """An infinite logit makes every probability of its row NaN."""
    logits = torch.zeros(3, 4)
    spoilt = logits.clone()
    spoilt[1, 2] = value
    parent, candidate = (spoilt, logits) if spoilt_is_parent else (logits, spoilt)
    first = scores(parent, [3, 0, 1, 2])
    score = compare(first, scores(candidate, [3, 0, 1, 2], first.ids))
    assert (score.tokens, score.broken) == (2, 1)
    assert score.nll_candidate == pytest.approx(
        2 * math.log(4)
    ) and score.nll_parent == pytest.approx(2 * math.log(4))
    assert score.kl == pytest.approx(0, abs=1e-6) and score.same_top == 2


def test_a_target_of_probability_zero_is_counted_and_not_averaged() -> None:
    parent = scored([[0.5, 0.5], [0.5, 0.5]], [0, 1])
    score = compare(parent, scored([[0.5, 0.5], [1.0, 0.0]], [0, 1], at=parent))
    assert (score.tokens, score.broken) == (1, 1)
    assert score.nll_candidate == pytest.approx(math.log(2))
    # one that is not among the kept tokens
    score = compare(kept([[0.5, 0.3, 0.2]], [2], [0]), kept([[0.5, 0.5, 0.0]], [2], [0]))
    assert (score.tokens, score.broken, score.nll_candidate) == (0, 1, 0)


def test_a_likely_token_of_probability_zero_is_counted_though_it_is_not_the_target() -> None:
    parent = scored([[0.5, 0.5], [0.5, 0.5]], [0, 0])
    score = compare(parent, scored([[0.5, 0.5], [1.0, 0.0]], [0, 0], at=parent))
    assert (score.tokens, score.broken) == (1, 1) and score.kl == pytest.approx(0, abs=1e-6)


def test_the_tail_of_the_divergence_is_that_of_single_positions() -> None:
    """1 position of 1000 differs, by KL = log 2 nats: the mean hides it, the largest value does
    not."""
    parent = scored([[0.5, 0.5]] * 1000, [0] * 1000)
    candidate = scored(
        [[0.5, 0.5]] * 999 + [[1 / 4 * (2 - 3**0.5), 1 / 4 * (2 + 3**0.5)]], [0] * 1000, at=parent
    )
    found = summarize_kl([divergence(parent, candidate)])
    assert found.largest == pytest.approx(math.log(2), rel=1e-4) and found.median == pytest.approx(
        0, abs=1e-6
    )
    assert (
        found.mean == pytest.approx(math.log(2) / 1000, rel=1e-3)
        and found.median <= found.p999 <= found.largest
    )


def test_probability_0_on_both_sides_is_no_divergence() -> None:
    """Some models forbid tokens that fill the vocabulary up."""
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    score = compare(scores(logits, [0, 1]), scores(logits, [0, 1]))
    assert (score.tokens, score.broken, score.kl) == (1, 0, 0.0)
