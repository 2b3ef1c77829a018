"""From the raw figures of a run to its result: percentiles with intervals, throughput, goodput, and
whether it is valid."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from artifacts.records.load_results import (
    OK,
    ClientHealth,
    Environment,
    Histogram,
    Lag,
    Load,
    LoadResult,
    Percentile,
    Percentiles,
    Rows,
    Share,
    Target,
    Warmup,
)
from configs.load_testing import Slo
from tasks.load.pool import Measured
from tasks.load.worker import HEARTBEAT_SECONDS

PERCENTS = (50.0, 95.0, 99.0)
CONFIDENCE = 0.95
# of one core, of a process of the client: beyond it, its own queue is part of what it measures
BUSY_CPU = 0.9
BUSY_MACHINE = 0.95
THROTTLED = 0.05
GROWTH = 1.5  # of the time to answer, from the first third of a run to the last
EDGES = tuple(float(edge) for edge in np.round(np.logspace(-5, 2, 141), 8))
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
            points=tuple(Percentile(percent=p, value=None, low=None, high=None) for p in PERCENTS),
        )
    known = effective_count(values) if effective is None else effective
    ordered = np.sort(values)
    return Percentiles(
        count=count,
        effective=round(known, 1),
        mean=_short(float(values.mean())),
        points=tuple(_percentile(ordered, percent, known) for percent in PERCENTS),
    )


def requests_needed(percent: float) -> int:
    """Independent requests without which a percentile has no interval: 6 for p50, 72 for p95, 368
    for p99."""
    share = percent / 100
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(max(share, 1 - share)))


def _percentile(ordered: Values, percent: float, effective: float) -> Percentile:
    share, known = percent / 100, int(effective)
    if known < requests_needed(percent):
        return Percentile(percent=percent, value=None, low=None, high=None)
    tail = (1 - CONFIDENCE) / 2
    low, high = stats.binom.ppf(tail, known, share), stats.binom.ppf(1 - tail, known, share) + 1
    scale, count = len(ordered) / known, len(ordered)
    return Percentile(
        percent=percent,
        value=_short(float(np.quantile(ordered, share))),
        low=_short(float(ordered[max(0, math.floor(low * scale) - 1)])),
        high=_short(float(ordered[min(count, math.ceil(high * scale)) - 1])),
    )


def effective_count(values: Values) -> float:
    """Independent values that tell as much as these: n over 1 + 2 * the sum of the ranks'
    autocorrelations, up to the first that is no more than noise."""
    count = len(values)
    if count < 4 or np.ptp(values) == 0:
        return float(count)
    ranks = stats.rankdata(values) - (count + 1) / 2
    power, noise, total = float(ranks @ ranks), 1.96 / math.sqrt(count), 0.0
    for lag in range(1, count // 2):
        correlation = float(ranks[:-lag] @ ranks[lag:]) / power
        if correlation < noise:
            break
        total += correlation
    return count / (1 + 2 * total)


def effective_gaps(gaps: Values, counts: npt.NDArray[np.int64]) -> float:
    """Independent gaps that tell as much as these about their share above the p95, when those of
    one answer hang together.

    From the variance of that share over whole requests: the gaps are a cluster sample.

    Args:
        gaps: those of all requests in a row.
        counts: how many belong to each request.
    """
    used = counts[counts > 0]
    if len(used) < 2:
        return float(len(used))
    share = 0.05
    above = gaps > np.quantile(gaps, 1 - share)
    starts = np.concatenate([[0], np.cumsum(used)[:-1]])
    residuals = np.add.reduceat(above.astype(np.float64), starts) - above.mean() * used
    variance = float(residuals @ residuals) / len(gaps) ** 2 * len(used) / (len(used) - 1)
    if variance == 0:
        return float(len(used))
    return min(float(len(gaps)), max(1.0, float(above.mean() * (1 - above.mean())) / variance))


def tokens_of(columns: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """New tokens of each request: the server's count, else the pieces of text."""
    counted: npt.NDArray[np.int64] = np.where(
        columns["tokens"] >= 0, columns["tokens"], columns["chunks"]
    )
    return counted


def tpot_of(columns: dict[str, npt.NDArray[Any]]) -> Values:
    """(e2e - ttft) / (tokens - 1) of each request, in seconds; NaN with fewer than two tokens."""
    tokens = tokens_of(columns)
    return np.where(
        tokens >= 2, (columns["e2e"] - columns["ttft"]) / np.maximum(tokens - 1, 1), np.nan
    )


def within(columns: dict[str, npt.NDArray[Any]], slo: Slo) -> npt.NDArray[np.bool_]:
    """Which requests were answered well: to the end, and within every limit that is given. What has
    no such time is within no limit on it, but for the time per token of an answer of one token."""
    good = columns["status"] == OK
    for limit, values in ((slo.ttft_ms, columns["ttft"]), (slo.e2e_ms, columns["e2e"])):
        if limit is not None:
            good = good & (np.nan_to_num(values, nan=np.inf) <= limit / 1e3)
    if slo.tpot_ms is not None:
        good = good & (np.nan_to_num(tpot_of(columns), nan=0.0) <= slo.tpot_ms / 1e3)
    return np.asarray(good, bool)


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
    return Lag(p50=_short(float(p50)), p99=_short(float(p99)), worst=_short(float(ordered[-1])))


def plain_lag(lags: Values) -> Lag:
    """Percentiles of requests."""
    if not len(lags):
        return Lag(p50=0.0, p99=0.0, worst=0.0)
    p50, p99 = np.quantile(lags, [0.5, 0.99])
    return Lag(p50=_short(float(p50)), p99=_short(float(p99)), worst=_short(float(lags.max())))


def summarize(
    load: Load,
    target: Target,
    measured: Measured,
    warmup: Warmup,
    environment: Environment,
    since: datetime,
) -> LoadResult:
    """The result of a run."""
    columns = measured.columns
    good = columns["status"] == OK
    tokens, ends = tokens_of(columns), columns["start"] + columns["e2e"]
    seconds = load.duration_seconds or (
        float(ends.max() - columns["start"].min()) if len(ends) else 0.0
    )
    horizon = load.duration_seconds or np.inf
    in_time = good & (ends <= horizon)
    within_slo = within(columns, load.slo)
    tpot = tpot_of(columns)
    gap_good = np.repeat(good, columns["gap_counts"])
    gaps = measured.gaps[gap_good].astype(np.float64)
    edges = np.array(EDGES)
    counts = np.histogram(np.clip(gaps, edges[0], edges[-1]), edges)[0]
    timed = good & ~np.isnan(columns["ttft"])
    result = LoadResult(
        load=load,
        target=target,
        environment=environment,
        since=since,
        measured_seconds=_short(seconds),
        rows=_rows(columns, tokens, tpot),
        ttft=percentiles(columns["ttft"][timed]),
        tpot=percentiles(tpot[good & ~np.isnan(tpot)]),
        inter_token=(
            percentiles(gaps, effective_gaps(gaps, columns["gap_counts"][good]))
            if len(gaps)
            else percentiles(gaps)
        ),
        inter_token_histogram=Histogram(edges=EDGES, counts=tuple(int(count) for count in counts)),
        e2e=percentiles(columns["e2e"][good]),
        requests_per_second=_rate(int(in_time.sum()), seconds),
        tokens_per_second=_rate(_tokens_within(columns, tokens, horizon), seconds),
        goodput_per_second=(
            _rate(int((within_slo & in_time).sum()), seconds) if load.slo.given else None
        ),
        within_slo=wilson(int(within_slo.sum()), len(good)) if load.slo.given else None,
        errors=errors_of(columns),
        error_example=measured.detail,
        short=int((good & (tokens < load.new_tokens)).sum()),
        counted_by_server=bool((columns["tokens"][good] >= 0).all()) if good.any() else False,
        client=health([measured]),
        warmup=warmup,
        problems=(),
        notes=(),
    )
    return result.model_copy(update={"problems": problems_of(result), "notes": notes_of(result)})


def problems_of(result: LoadResult) -> tuple[str, ...]:
    """Why a result says less about the server than about something else."""
    found = [
        *client_problems(result.client, result.load.max_lag_seconds),
        *error_problems(result.errors, len(result.rows.status), result.load),
    ]
    if not result.warmup.steady:
        found.append(
            "the warm-up never became steady: median seconds of its rounds "
            + ", ".join(f"{one:.3f}" for one in result.warmup.medians)
        )
    if result.e2e.count < requests_needed(50):
        found.append(
            f"{result.e2e.count} answers do not even bound the median, {requests_needed(50)} do"
        )
    return tuple(found)


def client_problems(client: ClientHealth, limit_seconds: float) -> list[str]:
    """Why the client may have been the bottleneck."""
    found = []
    for what, lag in (
        ("requests were sent late", client.send.p99),
        ("the client's event loop woke up late", client.loop.p99),
    ):
        if lag > limit_seconds:
            found.append(
                f"{what}: p99 of the lag {1e3 * lag:.1f} ms, limit {1e3 * limit_seconds:g} ms; the"
                " client was the bottleneck: use more processes, or a machine with idle cores"
            )
    if (busiest := max(client.cpu_share, default=0.0)) > BUSY_CPU:
        found.append(
            f"a process of the client used {busiest:.0%} of a core, limit {BUSY_CPU:.0%}: use more"
            " processes"
        )
    return found


def error_problems(errors: Mapping[str, int], count: int, load: Load) -> list[str]:
    """Too many failures to say how fast the server is."""
    failed = sum(errors.values())
    if count and failed / count <= load.max_error_share:
        return []
    kinds = ", ".join(f"{number} x {status}" for status, number in errors.items())
    return [
        f"{failed} of {count} requests failed ({kinds or 'none was sent'}), limit"
        f" {load.max_error_share:.1%}"
    ]


def errors_of(columns: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
    """How many requests ended how, without the good ones."""
    return {
        str(status): count
        for status, count in sorted(Counter(columns["status"].tolist()).items())
        if status != OK
    }


def health(measured: Sequence[Measured]) -> ClientHealth:
    """The client's own part in some runs together; `cpu_share` is the highest of each process."""
    return ClientHealth(
        send=plain_lag(np.concatenate([one.columns["lag"] for one in measured])),
        loop=weighted_lag(np.concatenate([one.heartbeat for one in measured]), HEARTBEAT_SECONDS),
        cpu_share=tuple(
            max(shares) for shares in zip(*(one.cpu_share for one in measured), strict=True)
        ),
    )


def notes_of(result: LoadResult) -> tuple[str, ...]:
    """What the reader of a valid result should know."""
    found = []
    for name, values in (("TTFT", result.ttft), ("TPOT", result.tpot), ("end-to-end", result.e2e)):
        missing = [f"p{point.percent:g}" for point in values.points if point.value is None]
        if values.count and missing:
            needed = [
                str(requests_needed(point.percent))
                for point in values.points
                if point.value is None
            ]
            found.append(
                f"{name}: no {' and '.join(missing)} from {values.count} requests, worth"
                f" {values.effective:.0f} independent ones;"
                f" {' and '.join(needed)} are needed"
            )
    if result.short:
        found.append(
            f"{result.short} answers have fewer than the {result.load.new_tokens} tokens that were"
            " asked for"
        )
    if not result.counted_by_server:
        found.append(
            "the server did not count tokens: pieces of text are counted, of which one can hold"
            " several tokens"
        )
    else:
        tokens, chunks = sum(result.rows.tokens), sum(result.rows.chunks)
        if chunks and abs(tokens / chunks - 1) > 0.1:
            found.append(
                f"{tokens / chunks:.2f} tokens in a piece of text: inter-token times are of pieces,"
                " time per token (TPOT) is of tokens"
            )
    if result.load.rate_per_second and (growth := _growth(result.rows)) > GROWTH:
        found.append(
            f"the server does not keep up with {result.load.rate_per_second:g} requests/s: the last"
            f" third of the requests took {growth:.1f} times as long as the first"
        )
    if (busy := result.environment.cpu_share or 0.0) > BUSY_MACHINE:
        found.append(
            f"the processors of the client's machine were {busy:.0%} busy: whatever else runs there"
            " is in the figures"
        )
    for gpu in result.environment.gpus:
        slowed = {
            name: share
            for name, share in gpu.throttle.items()
            if name != "idle" and share > THROTTLED
        }
        found += [
            f"GPU {gpu.index} held back by {name} {share:.0%} of the time"
            for name, share in slowed.items()
        ]
    return tuple(found)


def _growth(rows: Rows) -> float:
    times = [seconds for seconds, status in zip(rows.e2e, rows.status, strict=True) if status == OK]
    third = len(times) // 3
    return float(np.median(times[-third:]) / np.median(times[:third])) if third >= 5 else 1.0


def _tokens_within(
    columns: dict[str, npt.NDArray[Any]], tokens: npt.NDArray[np.int64], horizon: float
) -> float:
    """Tokens that came before the horizon; of an answer that it cuts, as if they had come evenly
    from the first to the last."""
    good = (columns["status"] == OK) & ~np.isnan(columns["ttft"])
    first, last, count = (
        (columns["start"] + columns["ttft"])[good],
        (columns["start"] + columns["e2e"])[good],
        tokens[good],
    )
    share = np.clip((horizon - first) / np.maximum(last - first, 1e-9), 0.0, 1.0)
    return float((count * share).sum())


def _rows(
    columns: dict[str, npt.NDArray[Any]], tokens: npt.NDArray[np.int64], tpot: Values
) -> Rows:
    return Rows(
        start=_column(columns["start"]),
        lag=_column(columns["lag"]),
        ttft=_optional(columns["ttft"]),
        tpot=_optional(tpot),
        e2e=_column(columns["e2e"]),
        prompt_tokens=tuple(int(one) if one >= 0 else None for one in columns["prompt_tokens"]),
        tokens=tuple(int(one) for one in tokens),
        chunks=tuple(int(one) for one in columns["chunks"]),
        status=tuple(str(one) for one in columns["status"]),
    )


def _column(values: Values) -> tuple[float, ...]:
    return tuple(_short(float(value)) for value in values)


def _optional(values: Sequence[float] | Values) -> tuple[float | None, ...]:
    return tuple(None if math.isnan(value) else _short(float(value)) for value in values)


def _rate(count: float, seconds: float) -> float:
    return round(count / seconds, 4) if seconds > 0 else 0.0


def _short(seconds: float) -> float:
    """Microseconds are all that a client's clock is good for, and the record stays small."""
    return round(seconds, 6)
