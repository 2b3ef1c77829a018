"""Statistics of pairs that are right or wrong, against textbook figures and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from tasks.quality.mcnemar import detectable_drop, holm, mcnemar


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
