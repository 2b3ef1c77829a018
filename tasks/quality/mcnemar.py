"""Statistics of two models that answered the same questions: right or wrong, in pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest


def mcnemar(lost: int, gained: int) -> tuple[float, float]:
    """Exact McNemar test (McNemar 1947): if both directions are equally likely, the flips are
    tosses of a fair coin.

    Args:
        lost: pairs in which only the first is right.
        gained: pairs in which only the second is right.

    Returns:
        The two-sided p value, and the one-sided against the alternative that `lost` is the likelier
        direction; 1 without flips.
    """
    if lost + gained == 0:
        return 1.0, 1.0
    two_sided = binomtest(lost, lost + gained, alternative="two-sided").pvalue
    worse = binomtest(lost, lost + gained, alternative="greater").pvalue
    return min(1.0, float(two_sided)), min(1.0, float(worse))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjustment (Scand. J. Statist. 6, 1979), in the given order: those at most
    alpha may be rejected together, and the chance of any false rejection is at most alpha, however
    the tests depend on each other."""
    adjusted = [0.0] * len(p_values)
    reached = 0.0
    smallest_first = sorted(range(len(p_values)), key=lambda number: p_values[number])
    for rank, number in enumerate(smallest_first):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = reached
    return tuple(adjusted)


def detectable_drop(n: int, flips: int, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest true drop in accuracy that the one-sided exact McNemar test finds with a
    probability of `power`.

    A drop d at a rate of flips f means losses at the rate (f + d) / 2 and gains at (f - d) / 2. f
    is the observed rate; where d exceeds it, all flips are losses. The number of flips is itself
    random, so the power is summed over it.

    Args:
        n: pairs.
        flips: pairs that disagree.

    Returns:
        A share of the pairs, 0 to 1; None if even a drop of all of them would not do.
    """
    rate = flips / max(1, n)
    if n == 0 or _power(n, rate, 1.0, alpha) < power:
        return None
    return float(brentq(lambda drop: _power(n, rate, drop, alpha) - power, 0.0, 1.0, xtol=1e-6))


def _power(n: int, rate: float, drop: float, alpha: float) -> float:
    """The probability that the one-sided test at `alpha` rejects, given the true drop and at least
    that rate of flips."""
    rate = max(rate, drop)
    if rate == 0:
        return 0.0
    low, high = binom.ppf([1e-9, 1 - 1e-9], n, rate)
    flips = np.arange(low, high + 1)
    needed = binom.isf(alpha, flips, 0.5) + 1  # losses: the fewest whose tail is at most alpha
    rejects = binom.sf(needed - 1, flips, (rate + drop) / (2 * rate))
    return float((binom.pmf(flips, n, rate) * rejects).sum())
