"""Percentiles and shares with their intervals, and how many independent values stand behind them.

Plain statistics of times in seconds: knows nothing of requests, servers or loads.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from artifacts.records.load_results import Lag, Percentile, Percentiles, Share

PERCENTS = (50.0, 95.0, 99.0)
CONFIDENCE = 0.95
TAIL_SHARE = 0.05  # of the gaps, whose clustering is looked at: those above the p95
Values = npt.NDArray[np.float64]


def percentiles(values: Values, effective: float | None = None) -> Percentiles:
    """p50, p95 and p99 with their intervals.

    The intervals are order statistics whose ranks come from the binomial distribution: no
    assumption about the shape. That takes independent values, and requests that wait for one
    another are not: the ranks are those of the effective number.

    Args:
        values: one-dimensional, in the order of time.
        effective: the number of independent values; by default from their autocorrelation.
    """
    count = len(values)
    if not count:
        return Percentiles(
            count=0,
            effective=0.0,
            mean=None,
            points=tuple(_too_few(percent) for percent in PERCENTS),
        )
    known = effective_count(values) if effective is None else effective
    ordered = np.sort(values)
    return Percentiles(
        count=count,
        effective=round(known, 1),
        mean=rounded(float(values.mean())),
        points=tuple(_percentile(ordered, percent, known) for percent in PERCENTS),
    )


def requests_needed(percent: float) -> int:
    """Independent requests without which a percentile has no interval: 6 for p50, 72 for p95, 368
    for p99."""
    share = percent / 100
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(max(share, 1 - share)))


def _too_few(percent: float) -> Percentile:
    return Percentile(percent=percent, value=None, low=None, high=None)


def _percentile(ordered: Values, percent: float, effective: float) -> Percentile:
    share = percent / 100
    known = int(effective)
    if known < requests_needed(percent):
        return _too_few(percent)
    tail = (1 - CONFIDENCE) / 2
    low = stats.binom.ppf(tail, known, share)
    high = stats.binom.ppf(1 - tail, known, share) + 1
    count = len(ordered)
    scale = count / known
    return Percentile(
        percent=percent,
        value=rounded(float(np.quantile(ordered, share))),
        low=rounded(float(ordered[max(0, math.floor(low * scale) - 1)])),
        high=rounded(float(ordered[min(count, math.ceil(high * scale)) - 1])),
    )


def effective_count(values: Values) -> float:
    """Independent values that tell as much as these: n over 1 + 2 * the sum of the ranks'
    autocorrelations, up to the first that is no more than noise."""
    count = len(values)
    if count < 4 or np.ptp(values) == 0:
        return float(count)
    ranks = stats.rankdata(values) - (count + 1) / 2
    power = float(ranks @ ranks)
    noise = 1.96 / math.sqrt(count)
    total = 0.0
    for lag in range(1, count // 2):
        correlation = float(ranks[:-lag] @ ranks[lag:]) / power
        if correlation < noise:
            break
        total += correlation
    return count / (1 + 2 * total)


def effective_gaps(gaps: Values, counts: npt.NDArray[np.int64]) -> float:
    """Independent gaps that tell as much as these about their share above the p95, when those of
    one answer are correlated.

    From the variance of that share over whole requests: the gaps are a cluster sample.

    Args:
        gaps: those of all requests in a row.
        counts: how many belong to each request.
    """
    used = counts[counts > 0]
    if len(used) < 2:
        return float(len(used))
    above = gaps > np.quantile(gaps, 1 - TAIL_SHARE)
    starts = np.concatenate([[0], np.cumsum(used)[:-1]])
    residuals = np.add.reduceat(above.astype(np.float64), starts) - above.mean() * used
    variance = float(residuals @ residuals) / len(gaps) ** 2 * len(used) / (len(used) - 1)
    if variance == 0:
        return float(len(used))
    independent = float(above.mean() * (1 - above.mean())) / variance
    return min(float(len(gaps)), max(1.0, independent))


def wilson(hits: int, count: int) -> Share:
    """A share with its 95 % interval."""
    if not count:
        return Share(value=0.0, low=0.0, high=1.0)
    interval = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return Share(value=hits / count, low=float(interval.low), high=float(interval.high))


def weighted_lag(lags: Values, each: float) -> Lag:
    """Percentiles of time: a wake-up that came late by x stands for `each` + x seconds in which the
    client was late."""
    if not len(lags):
        return Lag(p50=0.0, p99=0.0, worst=0.0)
    ordered = np.sort(lags)
    shares = np.cumsum(ordered + each) / float((ordered + each).sum())
    p50, p99 = ordered[np.minimum(np.searchsorted(shares, [0.5, 0.99]), len(lags) - 1)]
    return _lag(p50, p99, ordered[-1])


def plain_lag(lags: Values) -> Lag:
    """Percentiles of requests."""
    if not len(lags):
        return Lag(p50=0.0, p99=0.0, worst=0.0)
    p50, p99 = np.quantile(lags, [0.5, 0.99])
    return _lag(p50, p99, lags.max())


def _lag(p50: float, p99: float, worst: float) -> Lag:
    return Lag(p50=rounded(float(p50)), p99=rounded(float(p99)), worst=rounded(float(worst)))


def rounded(seconds: float) -> float:
    """Microseconds are all that a client's clock is good for, and the record stays small."""
    return round(seconds, 6)
