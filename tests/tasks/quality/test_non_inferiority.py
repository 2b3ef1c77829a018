"""The interval of the verdict: known answers, error rates under simulated models, and the power
that it states."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from tasks.quality.non_inferiority import (
    POWER,
    Estimate,
    looks_levels,
    paired_difference,
    smallest_detectable,
)
from tests.support.rounds import rounds

MARGIN = 0.1  # nats a token
SIMULATIONS = rounds(200, soak=2000)
RESAMPLES = 1000
Array = npt.NDArray[np.float64]
Effects = Callable[[np.random.Generator, Array], Array]


def normal(rng: np.random.Generator, tokens: Array) -> Array:
    return rng.normal(0, 0.05, len(tokens))


def short_ones_vary_more(rng: np.random.Generator, tokens: Array) -> Array:
    return rng.normal(0, 0.05, len(tokens)) * (1 + 200 / tokens)


def few_are_hurt_much(rng: np.random.Generator, tokens: Array) -> Array:
    """Exponential: most documents lose less than the mean, some several times as much."""
    return (rng.exponential(1, len(tokens)) - 1) * 0.05


def sample(
    rng: np.random.Generator, effects: Effects, documents: int, loss: float
) -> tuple[Array, Array]:
    """Sums of differences, and tokens, of documents whose true mean difference per token is
    `loss`."""
    tokens = np.clip(rng.lognormal(5.5, 0.8, documents), 20, 512).round()
    noise = rng.normal(0, 0.5, documents) / np.sqrt(tokens)
    return (loss + effects(rng, tokens) + noise) * tokens, tokens


def share(
    looks: tuple[int, ...],
    effects: Effects,
    loss: float,
    decided: Callable[[Estimate], bool | None],
) -> float:
    """How often `decided` says True at the first look at which it says anything."""
    levels, rng, hits = looks_levels(looks, 0.95), np.random.default_rng(7), 0
    for number in range(SIMULATIONS):
        sums, tokens = sample(rng, effects, looks[-1], loss)
        for documents, level in zip(looks, levels, strict=True):
            answer = decided(
                paired_difference(
                    sums[:documents],
                    tokens[:documents],
                    level=level,
                    seed=number,
                    resamples=RESAMPLES,
                )
            )
            if answer is not None:
                hits += answer
                break
    return hits / SIMULATIONS


def passes(found: Estimate) -> bool | None:
    return True if found.high < MARGIN else False if found.low > MARGIN else None


@pytest.mark.soak
@pytest.mark.parametrize("effects", [normal, short_ones_vary_more, few_are_hurt_much])
@pytest.mark.parametrize("looks", [(24,), (24, 48)], ids=["one_look", "two_looks"])
def test_a_model_that_is_worse_by_just_the_margin_passes_at_most_one_time_in_twenty(
    looks: tuple[int, ...], effects: Effects
) -> None:
    assert share(looks, effects, MARGIN, passes) <= 0.05


@pytest.mark.soak
@pytest.mark.parametrize("documents", [24, 48])
def test_the_stated_smallest_loss_is_seen_as_often_as_stated(documents: int) -> None:
    rng = np.random.default_rng(1)
    stated = [
        smallest_detectable(
            paired_difference(
                *sample(rng, normal, documents, 0.0), level=0.95, seed=seed, resamples=RESAMPLES
            )
        )
        for seed in range(SIMULATIONS // 2)
    ]
    seen = share((documents,), normal, float(np.mean(stated)), lambda found: found.low > 0)
    assert seen == pytest.approx(POWER, abs=0.05)


def test_the_mean_is_that_of_all_tokens() -> None:
    found = paired_difference([10.0, 1.0], [90, 10], level=0.95)
    assert found.mean == pytest.approx(0.11)


def test_documents_of_equal_length_have_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.05, 40)
    found = paired_difference(values * 100, [100] * 40, level=0.95)
    assert found.error == pytest.approx(stats.sem(values))
    half = stats.t.ppf(0.975, 39) * stats.sem(values)
    assert found.low <= values.mean() - half and found.high >= values.mean() + half
    assert found.high - found.low < 2.5 * half  # and not much wider


def test_equal_differences_have_no_interval() -> None:
    assert paired_difference([0.5, 1.0, 2.0], [1, 2, 4], level=0.95) == pytest.approx(
        (0.5, 0.5, 0.5, 0.0, 49 / 21)
    )


def test_the_interval_is_the_same_each_time_and_wider_with_more_confidence() -> None:
    sums, tokens = sample(np.random.default_rng(3), few_are_hurt_much, 30, 0.05)
    one, again = (paired_difference(sums, tokens, level=0.95) for _ in range(2))
    wide = paired_difference(sums, tokens, level=0.99)
    assert one == again and wide.low < one.low < one.mean < one.high < wide.high


def test_one_hurt_document_among_many_makes_the_upper_side_the_longer_one() -> None:
    found = paired_difference([0.1] * 29 + [30.0], [100] * 30, level=0.95)
    assert found.high - found.mean > found.mean - found.low


def test_one_document_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two documents"):
        paired_difference([1.0], [10], level=0.95)


@pytest.mark.parametrize(
    ("planned", "bounds"),
    [
        ((1, 2), (2.797, 1.977)),
        ((1, 2, 3), (3.471, 2.454, 2.004)),
        ((1, 2, 3, 4, 5), (4.562, 3.226, 2.634, 2.281, 2.040)),
    ],
)
def test_the_looks_are_those_of_the_published_tables(
    planned: tuple[int, ...], bounds: tuple[float, ...]
) -> None:
    """O'Brien and Fleming's bounds at two-sided 5 %, as in Jennison and Turnbull, Group Sequential
    Methods, 2000, table 2.3."""
    levels = looks_levels(planned, 0.95)
    assert [stats.norm.ppf((1 + level) / 2) for level in levels] == pytest.approx(bounds, abs=0.005)


def test_one_look_is_the_plain_interval() -> None:
    assert looks_levels((24,), 0.95) == [0.95]


def test_the_smallest_detectable_loss_of_a_normal_mean_is_the_textbooks() -> None:
    """(z of 97.5 % + z of 80 %) standard errors, with Student's t for z."""
    values = stats.norm.ppf((np.arange(400) + 0.5) / 400)
    found = paired_difference(values * 10, [10] * 400, level=0.95)
    assert smallest_detectable(found) == pytest.approx((1.966 + 0.842) / math.sqrt(400), rel=0.05)
