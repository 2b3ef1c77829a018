"""Which figures of speed the report's page has, and what their captions say: throughput and latency
under load; without a load test, what the engines did by themselves.

`tasks.reporting.plots` draws them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from artifacts.records.load_results import OK, Load, LoadResult
from artifacts.records.measurement import Speed
from tasks.reporting import plots
from tasks.reporting.data import ReportData, Subject
from tasks.reporting.plots import Curve, Plot

METRICS = {
    "time to first token, s": "ttft",
    "time per further token, ms": "tpot",
    "whole answer, s": "e2e",
}


@dataclass(frozen=True)
class SharedSpeed:
    """Tokens/s of several variants under equal conditions, by their labels."""

    what: str
    unit: str
    figures: dict[str, float]
    count: str


def speed(data: ReportData) -> Iterator[Plot]:
    """Latency and throughput under load; without a load test, what the engines did by
    themselves."""
    tested = [subject for subject in data.subjects if subject.load and subject.load.results]
    if tested:
        yield from _throughput(tested)
        yield from _latency(tested)
    else:
        yield from _engine_speed(data)


def shared_speed(data: ReportData) -> SharedSpeed | None:
    """Tokens/s of each variant under the load, or else at the batch size, that most of them share;
    None with fewer than two."""
    return _shared_load(data) or _shared_batch(data)


# -- under load


def _throughput(tested: Sequence[Subject]) -> Iterator[Plot]:
    # pairs and no mapping: a comparison of an artifact with itself has equal labels
    swept = [(subject.label, _closed_loops(subject)) for subject in tested]
    swept = [(label, results) for label, results in swept if results]
    if not swept:
        return
    curves = [_load_curve(label, results) for label, results in swept]
    invalid = (
        " A red ring marks a run that is invalid (the table says why)."
        if any(any(curve.hollow) for curve in curves)
        else ""
    )
    counts = "; ".join(
        f"{label} {', '.join(str(len(result.rows.e2e)) for result in results)}"
        for label, results in swept
    )
    yield Plot(
        key="throughput",
        title="Throughput against concurrency",
        svg=plots.throughput(curves, "requests at a time", "new tokens/s"),
        caption=(
            f"New tokens per second over all requests, at the client.{invalid} n (requests, by"
            f" concurrency): {counts}."
        ),
        description=_described(curves, "at"),
    )


def _load_curve(label: str, results: Sequence[LoadResult]) -> Curve:
    return Curve(
        label,
        tuple(float(result.load.concurrency or 0) for result in results),
        tuple(result.tokens_per_second for result in results),
        hollow=tuple(not result.valid for result in results),
    )


def _closed_loops(subject: Subject) -> list[LoadResult]:
    results = subject.load.results if subject.load else ()
    closed = [result for result in results if result.load.concurrency is not None]
    return sorted(closed, key=lambda result: result.load.concurrency or 0)


def _latency(tested: Sequence[Subject]) -> Iterator[Plot]:
    chosen = _heaviest_shared_load(tested)
    panels = []
    for label, metric in METRICS.items():
        values = {name: _values(result, metric) for name, result in chosen.items()}
        known = {name: found for name, found in values.items() if found}
        if known:
            panels.append((label, known))
    if not panels:
        return
    name = next(iter(chosen.values())).load.name
    counts = ", ".join(
        f"{label} {sum(status == OK for status in result.rows.status)}"
        for label, result in chosen.items()
    )
    yield Plot(
        key="latency",
        title=f"Latency at {name}",
        svg=plots.distributions(panels),
        caption=(
            f"Share of the requests that took at most so long, at {name}; left is faster. n"
            f" (answered requests): {counts}."
        ),
        description="; ".join(f"{label}: {_medians(known)}" for label, known in panels),
    )


def _medians(values: dict[str, list[float]]) -> str:
    return ", ".join(
        f"{variant} median {sorted(found)[len(found) // 2]:.3g}"
        for variant, found in values.items()
    )


def _heaviest_shared_load(tested: Sequence[Subject]) -> dict[str, LoadResult]:
    """The results of the heaviest load that every one of these bore with a valid result;
    concurrency before rates."""
    valid = [
        (subject.label, {result.load: result for result in subject.load.results if result.valid})
        for subject in tested
        if subject.load
    ]
    if not valid:
        return {}
    common = set.intersection(*(set(results) for _, results in valid))
    if not common:
        return {}
    heaviest = max(common, key=_weight)
    return {label: results[heaviest] for label, results in valid}


def _weight(load: Load) -> tuple[int, float]:
    return load.concurrency or 0, load.rate_per_second or 0.0


def _values(result: LoadResult, metric: str) -> list[float]:
    """Of the answered requests, in seconds; times per token in milliseconds."""
    factor = 1e3 if metric == "tpot" else 1.0
    values: tuple[float | None, ...] = getattr(result.rows, metric)
    return [
        factor * value
        for value, status in zip(values, result.rows.status, strict=True)
        if status == OK and value is not None
    ]


def _shared_load(data: ReportData) -> SharedSpeed | None:
    tested = _heaviest_shared_load([subject for subject in data.subjects if subject.load])
    if len(tested) < 2:
        return None
    name = next(iter(tested.values())).load.name
    counts = ", ".join(f"{label} {len(result.rows.e2e)}" for label, result in tested.items())
    return SharedSpeed(
        what="throughput",
        unit=f"new tokens/s at {name}",
        figures={label: result.tokens_per_second for label, result in tested.items()},
        count=f"n (requests): {counts}",
    )


# -- the engines by themselves


def _engine_speed(data: ReportData) -> Iterator[Plot]:
    timed = [
        (subject.label, sorted(subject.measurement.speeds, key=lambda speed: speed.batch_size))
        for subject in data.subjects
        if subject.measurement and subject.measurement.speeds
    ]
    if not timed:
        return
    curves = [_engine_curve(label, speeds) for label, speeds in timed]
    counts = ", ".join(f"{label} {len(speeds[0].decode)}" for label, speeds in timed)
    yield Plot(
        key="decode",
        title="Decode speed against batch size",
        svg=plots.throughput(curves, "batch size", "new tokens/s"),
        caption=(
            "New tokens per second over the whole batch, at the engine without a server: medians,"
            " and lines from the slowest to the fastest round. n (rounds at each batch size):"
            f" {counts}."
        ),
        description=_described(curves, "at batch size"),
    )


def _engine_curve(label: str, speeds: Sequence[Speed]) -> Curve:
    return Curve(
        label,
        tuple(float(speed.batch_size) for speed in speeds),
        tuple(speed.decode_median for speed in speeds),
        low=tuple(min(speed.decode) for speed in speeds),
        high=tuple(max(speed.decode) for speed in speeds),
    )


def _shared_batch(data: ReportData) -> SharedSpeed | None:
    timed = {
        subject.label: {speed.batch_size: speed for speed in subject.measurement.speeds}
        for subject in data.subjects
        if subject.measurement and subject.measurement.speeds
    }
    if len(timed) < 2:
        return None
    common = set.intersection(*(set(speeds) for speeds in timed.values()))
    if not common:
        return None
    batch = max(common)
    counts = ", ".join(f"{label} {len(speeds[batch].decode)}" for label, speeds in timed.items())
    return SharedSpeed(
        what="decode speed",
        unit=f"new tokens/s at batch size {batch}",
        figures={label: speeds[batch].decode_median for label, speeds in timed.items()},
        count=f"n (rounds): {counts}",
    )


def _described(curves: Sequence[Curve], at: str) -> str:
    return "; ".join(
        f"{curve.label}: "
        + ", ".join(f"{y:.0f} {at} {x:g}" for x, y in zip(curve.x, curve.y, strict=True))
        for curve in curves
    )
