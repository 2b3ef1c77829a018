"""The statistics of the verdict: a paired difference over documents, with an interval that may be
looked at more than once.

Tokens of one document are not independent, documents are: a document is the block of the bootstrap.
The estimator is the ratio of two sums (differences over tokens), whose percentile interval is too
short for some dozens of skewed documents; so the bootstrap is studentized (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, section 12.5), and never narrower than Student's t. More
documents may be scored while the answer is open: the limits of each look are O'Brien's and
Fleming's (Biometrics 35, 1979), so that the interval holds over all looks that were planned.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.optimize import brentq

if TYPE_CHECKING:
    from numpy.random import Generator

POWER = 0.8  # at which the smallest loss is seen that a sample could have detected
RESAMPLES = 10_000
CHUNK = 4_000_000  # drawn indices at a time: 32 MB


class Estimate(NamedTuple):
    """A mean difference per token with its interval, and its standard error; in the unit of the
    differences.

    `documents` is how many of equal length would say as much.
    """

    mean: float
    low: float
    high: float
    error: float
    documents: float


def paired_difference(
    differences: npt.ArrayLike,
    tokens: npt.ArrayLike,
    *,
    level: float,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The mean difference per token between two models that scored the same documents.

    Args:
        differences: per document, the sum over its tokens of candidate minus parent.
        tokens: per document, how many tokens that sum has; at least 1.
        level: two-sided confidence of the interval, of this look alone (`looks_levels`).

    Raises:
        ValueError: fewer than two documents.
    """
    sums = np.asarray(differences, np.float64)
    counts = np.asarray(tokens, np.float64)
    if len(sums) < 2:
        raise ValueError("an interval needs at least two documents")
    means, errors = _ratio(sums[None], counts[None])
    mean = means[0]
    error = errors[0]
    half = stats.t.ppf((1 + level) / 2, len(sums) - 1) * error
    low = mean - half
    high = mean + half
    if error > 0:
        deviations = _studentized(sums, counts, np.random.default_rng(seed), resamples)
        below, above = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2])
        low = min(low, mean - above * error)
        high = max(high, mean - below * error)
    return Estimate(
        mean=float(mean),
        low=float(low),
        high=float(high),
        error=float(error),
        documents=float(counts.sum() ** 2 / (counts * counts).sum()),
    )


def smallest_detectable(estimate: Estimate) -> float:
    """The smallest true loss whose interval would have lain above 0 in POWER of all samples like
    this one.

    Not only the mean varies between samples, the interval's width does, too: a studentized one
    about as much as if there were half as many documents (simulated; the tests hold it to the
    stated power).
    """
    half = estimate.mean - estimate.low
    spread = np.hypot(estimate.error, half / np.sqrt(estimate.documents))
    return float(half + stats.norm.ppf(POWER) * spread)


@cache
def looks_levels(sizes: tuple[int, ...], confidence: float) -> list[float]:
    """Two-sided confidence of each look at a growing sample, such that all looks together have
    `confidence`.

    Args:
        sizes: documents at each planned look, growing.
    """
    planned = np.asarray(sizes, np.float64)
    # correlation of the looks' means
    ratio = np.sqrt(np.minimum.outer(planned, planned) / np.maximum.outer(planned, planned))
    growth = np.sqrt(planned[-1] / planned)
    if len(planned) == 1:
        return [confidence]

    def excess(bound: float) -> float:
        """How much more often than it may some look's mean exceeds its bound, where nothing is
        true."""
        inside = stats.multivariate_normal.cdf(
            bound * growth, cov=ratio, abseps=1e-5, rng=np.random.default_rng(0)
        )
        return float(1 - inside - (1 - confidence) / 2)

    final = brentq(excess, 1.0, 6.0, xtol=1e-4)
    return [float(2 * stats.norm.cdf(final * factor) - 1) for factor in growth]


def _studentized(
    sums: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], rng: Generator, resamples: int
) -> npt.NDArray[np.float64]:
    """Deviations of resampled means in units of their own standard errors, float64[resamples]."""
    mean = float(sums.sum() / counts.sum())
    documents = len(sums)
    at_once = max(1, CHUNK // documents)
    parts = []
    for start in range(0, resamples, at_once):
        drawn = rng.integers(0, documents, (min(resamples - start, at_once), documents))
        means, errors = _ratio(sums[drawn], counts[drawn])
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append((means - mean) / errors)
    deviations = np.nan_to_num(np.concatenate(parts), nan=0.0, posinf=np.inf, neginf=-np.inf)
    return np.clip(deviations, *_finite_range(deviations))


def _finite_range(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """A resample of one document many times over has no error of its own; it counts as the largest
    of the others."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)


def _ratio(
    sums: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean per token and its jackknife standard error of each row; rows are samples of documents.

    Leaving out one document moves the mean by its residual over the tokens that are left, so a long
    document weighs more.
    """
    total = counts.sum(1)
    documents = sums.shape[1]
    mean = sums.sum(1) / total
    moves = (sums - mean[:, None] * counts) / (total[:, None] - counts)
    return mean, np.sqrt((documents - 1) / documents * (moves * moves).sum(1))
