"""From the raw figures of a run to its result: times of each request, throughput, goodput.

`tasks.load.intervals` has the statistics, `tasks.load.validity` says whether the result counts.
"""

from __future__ import annotations

import math
from datetime import datetime

import numpy as np
import numpy.typing as npt

from artifacts.records.load_results import (
    OK,
    Environment,
    Histogram,
    Load,
    LoadResult,
    Percentiles,
    Rows,
    Target,
    Warmup,
)
from configs.load_testing import Slo
from tasks.load.intervals import Values, effective_gaps, percentiles, rounded, wilson
from tasks.load.pool import Columns, Measured
from tasks.load.validity import errors_of, health, notes_of, problems_of

EDGES = tuple(float(edge) for edge in np.round(np.logspace(-5, 2, 141), 8))


def tokens_of(columns: Columns) -> npt.NDArray[np.int64]:
    """New tokens of each request: the server's count, else the pieces of text."""
    counted: npt.NDArray[np.int64] = np.where(
        columns["tokens"] >= 0, columns["tokens"], columns["chunks"]
    )
    return counted


def tpot_of(columns: Columns) -> Values:
    """(e2e - ttft) / (tokens - 1) of each request, in seconds; NaN with fewer than two tokens."""
    tokens = tokens_of(columns)
    each = (columns["e2e"] - columns["ttft"]) / np.maximum(tokens - 1, 1)
    return np.where(tokens >= 2, each, np.nan)


def within(columns: Columns, slo: Slo) -> npt.NDArray[np.bool_]:
    """Which requests were answered well: to the end, and within every limit that is given. What has
    no such time is within no limit on it, but for the time per token of an answer of one token."""
    good = columns["status"] == OK
    for limit_ms, values, unknown in (
        (slo.ttft_ms, columns["ttft"], np.inf),
        (slo.e2e_ms, columns["e2e"], np.inf),
        (slo.tpot_ms, tpot_of(columns), 0.0),
    ):
        if limit_ms is not None:
            good = good & (np.nan_to_num(values, nan=unknown) <= limit_ms / 1e3)
    return np.asarray(good, bool)


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
    tokens = tokens_of(columns)
    tpot = tpot_of(columns)
    ends = columns["start"] + columns["e2e"]
    horizon = load.duration_seconds or np.inf
    in_time = good & (ends <= horizon)
    seconds = _duration(load, columns["start"], ends)
    within_slo = within(columns, load.slo)
    gaps = _gaps(measured, good)
    result = LoadResult(
        load=load,
        target=target,
        environment=environment,
        since=since,
        measured_seconds=rounded(seconds),
        rows=_rows(columns, tokens, tpot),
        ttft=percentiles(columns["ttft"][good & ~np.isnan(columns["ttft"])]),
        tpot=percentiles(tpot[good & ~np.isnan(tpot)]),
        inter_token=_inter_token(gaps, columns["gap_counts"][good]),
        inter_token_histogram=_histogram(gaps),
        e2e=percentiles(columns["e2e"][good]),
        requests_per_second=_rate(int(in_time.sum()), seconds),
        tokens_per_second=_rate(_tokens_within(columns, tokens, horizon), seconds),
        goodput_per_second=(
            _rate(int((within_slo & in_time).sum()), seconds) if load.slo.given else None
        ),
        within_slo=wilson(int(within_slo.sum()), len(good)) if load.slo.given else None,
        errors=errors_of(columns["status"]),
        error_example=measured.detail,
        short=int((good & (tokens < load.new_tokens)).sum()),
        counted_by_server=bool(good.any() and (columns["tokens"][good] >= 0).all()),
        client=health([measured]),
        warmup=warmup,
        problems=(),
        notes=(),
    )
    return result.model_copy(update={"problems": problems_of(result), "notes": notes_of(result)})


def _duration(load: Load, starts: Values, ends: Values) -> float:
    """Seconds that a run took; as long as it was asked for, if it was asked for a time."""
    if load.duration_seconds:
        return load.duration_seconds
    return float(ends.max() - starts.min()) if len(ends) else 0.0


def _gaps(measured: Measured, good: npt.NDArray[np.bool_]) -> Values:
    """Those between the pieces of text of the good requests, all in a row."""
    return measured.gaps[np.repeat(good, measured.columns["gap_counts"])].astype(np.float64)


def _inter_token(gaps: Values, counts: npt.NDArray[np.int64]) -> Percentiles:
    if not len(gaps):
        return percentiles(gaps)
    return percentiles(gaps, effective_gaps(gaps, counts))


def _histogram(gaps: Values) -> Histogram:
    counts, _ = np.histogram(np.clip(gaps, EDGES[0], EDGES[-1]), np.array(EDGES))
    return Histogram(edges=EDGES, counts=tuple(int(count) for count in counts))


def _tokens_within(columns: Columns, tokens: npt.NDArray[np.int64], horizon: float) -> float:
    """Tokens that came before the horizon; of an answer that it cuts, as if they had come evenly
    from the first to the last."""
    good = (columns["status"] == OK) & ~np.isnan(columns["ttft"])
    first = (columns["start"] + columns["ttft"])[good]
    last = (columns["start"] + columns["e2e"])[good]
    share = np.clip((horizon - first) / np.maximum(last - first, 1e-9), 0.0, 1.0)
    return float((tokens[good] * share).sum())


def _rows(columns: Columns, tokens: npt.NDArray[np.int64], tpot: Values) -> Rows:
    return Rows(
        start=_column(columns["start"]),
        lag=_column(columns["lag"]),
        ttft=_optional(columns["ttft"]),
        tpot=_optional(tpot),
        e2e=_column(columns["e2e"]),
        prompt_tokens=tuple(
            int(count) if count >= 0 else None for count in columns["prompt_tokens"]
        ),
        tokens=tuple(int(count) for count in tokens),
        chunks=tuple(int(count) for count in columns["chunks"]),
        status=tuple(str(status) for status in columns["status"]),
    )


def _column(values: Values) -> tuple[float, ...]:
    return tuple(rounded(float(value)) for value in values)


def _optional(values: Values) -> tuple[float | None, ...]:
    return tuple(None if math.isnan(value) else rounded(float(value)) for value in values)


def _rate(count: float, seconds: float) -> float:
    return round(count / seconds, 4) if seconds > 0 else 0.0
