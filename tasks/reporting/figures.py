"""Which plots the report's page has, from what was measured, and what their captions say.
`tasks.reporting.plots` draws them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from artifacts.records.load_results import OK, LoadResult
from configs.errors import LmflowsError
from tasks.quality.objective import UNITS, figure
from tasks.reporting import plots
from tasks.reporting.markdown import percent
from tasks.reporting.plots import Curve, Interval, Option, Plot

if TYPE_CHECKING:
    from tasks.reporting.page import Story, Subject


def quality(story: Story) -> Iterator[Plot]:
    """Paired differences by document, and the ratios of all variants."""
    verdict = story.verdict
    documents = [document for document in story.evidence.documents if document.tokens]
    values = [
        (document.nll_candidate - document.nll_parent) / document.tokens for document in documents
    ]
    if values and not story.itself:
        worse, over = (
            sum(value > 0 for value in values),
            sum(value > verdict.margin for value in values),
        )
        mean = (
            ""
            if verdict.difference is None
            else (
                f"The mean, weighted by tokens, is {verdict.difference.mean:+.4f}, its"
                f" {percent(verdict.difference.confidence)} interval {verdict.difference.low:+.4f}"
                f" to {verdict.difference.high:+.4f}. "
            )
        )
        yield Plot(
            key="paired",
            title="Loss on each document",
            svg=plots.paired(values, verdict.margin, verdict.difference),
            caption=(
                f"How much less likely {story.served.label} finds each held-out document than"
                f" {story.parent_label}. {mean}The margin is {verdict.margin:.4f} nats a token. n ="
                f" {len(values)} documents, {story.evidence.tokens:,} tokens."
            ),
            description=(
                f"{worse} of {len(values)} documents are less likely under {story.served.label},"
                f" {over} of them by more than the margin."
            ),
        )
    rows = [
        Interval(one.label, *one.verdict.difference.ratio, one.verdict.outcome)
        for one in story.subjects
        if one.verdict
        and one.verdict.difference
        and not one.parent
        and math.isfinite(one.verdict.difference.ratio[2])
    ]
    if rows:
        margin = math.exp(verdict.margin)
        yield Plot(
            key="forest",
            title="Perplexity ratio of each variant",
            svg=plots.forest(rows, margin),
            caption=(
                f"Perplexity over that of {story.parent_label}, with its interval. PASS needs the"
                f" whole interval left of the margin, {margin:g}. {_documents(story)}."
            ),
            description="; ".join(
                f"{row.label} {row.value:.4g}, {row.low:.4g} to {row.high:.4g}, {row.outcome}"
                for row in rows
            ),
        )


def speed(story: Story) -> Iterator[Plot]:
    """Latency and throughput under load; without a load test, what the engines did by
    themselves."""
    tested = [one for one in story.subjects if one.load and one.load.results]
    if not tested:
        yield from _engine_speed(story)
        return
    curves, notes = [], []
    for one in tested:
        results = sorted(_closed_loops(one), key=lambda result: result.load.concurrency or 0)
        if results:
            curves.append(
                Curve(
                    one.label,
                    tuple(float(result.load.concurrency or 0) for result in results),
                    tuple(result.tokens_per_second for result in results),
                    hollow=tuple(not result.valid for result in results),
                )
            )
            notes.append(
                f"{one.label} {', '.join(str(len(result.rows.e2e)) for result in results)}"
            )
    if curves:
        invalid = (
            " A red ring marks a run that is invalid (the table says why)."
            if any(any(curve.hollow) for curve in curves)
            else ""
        )
        yield Plot(
            key="throughput",
            title="Throughput against concurrency",
            svg=plots.throughput(curves, "requests at a time", "new tokens/s"),
            caption=(
                f"New tokens per second over all requests, at the client.{invalid} n (requests, by"
                f" concurrency): {'; '.join(notes)}."
            ),
            description="; ".join(
                f"{curve.label}: "
                + ", ".join(f"{y:.0f} at {x:g}" for x, y in zip(curve.x, curve.y, strict=True))
                for curve in curves
            ),
        )
    chosen = _same_load(tested)
    latencies = [
        ("time to first token, s", "ttft"),
        ("time per further token, ms", "tpot"),
        ("whole answer, s", "e2e"),
    ]
    panels = []
    for label, metric in latencies:
        values = {
            name: found for name, result in chosen.items() if (found := _values(result, metric))
        }
        if values:
            panels.append((label, values))
    if panels:
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
            description="; ".join(
                f"{label}: "
                + ", ".join(
                    f"{variant} median {sorted(values)[len(values) // 2]:.3g}"
                    for variant, values in found.items()
                )
                for label, found in panels
            ),
        )


def trade_offs(story: Story) -> Iterator[Plot]:
    """Quality against speed, and against the size of the weights."""
    margin = math.exp(story.verdict.margin)
    speeds = _speeds(story)
    if speeds is not None:
        what, unit, of, count = speeds
        yield from _trade_off(
            "pareto-speed",
            f"Quality against {what}",
            unit,
            margin,
            more_is_better=True,
            options=[
                Option(one.label, ratio, of[one.label])
                for one, ratio in _ratios(story)
                if one.label in of
            ],
            count=f"{count}; {_documents(story)}",
        )
    memory = _memory(story)
    yield from _trade_off(
        "pareto-memory",
        "Quality against memory",
        UNITS["memory"].replace(" of weights and of KV", ", weights and KV"),
        margin,
        more_is_better=False,
        options=[
            Option(one.label, ratio, memory[one.label])
            for one, ratio in _ratios(story)
            if one.label in memory
        ],
        count=_documents(story) + "; memory is counted, not measured",
    )


def _trade_off(
    key: str,
    title: str,
    unit: str,
    margin: float,
    *,
    options: list[Option],
    more_is_better: bool,
    count: str,
) -> Iterator[Plot]:
    if len(options) < 2:
        return
    options = plots.with_dominated(options, more_is_better=more_is_better)
    better = "right" if more_is_better else "left"
    hollow = (
        " A hollow variant is dominated: another one is at least as good in both respects."
        if any(one.dominated for one in options)
        else ""
    )
    yield Plot(
        key=key,
        title=title,
        svg=plots.pareto(options, margin, unit),
        caption=(
            f"Better is down and to the {better}; the dashed red line is the margin.{hollow}"
            f" {count}."
        ),
        description="; ".join(
            f"{one.label}: ratio {one.ratio:.4g}, {one.other:.4g}"
            f" ({unit}){', dominated' if one.dominated else ''}"
            for one in options
        ),
    )


def _documents(story: Story) -> str:
    return "n (documents): " + ", ".join(
        f"{one.label} {len(one.evidence.documents)}"
        for one in story.subjects
        if one.evidence and not one.parent
    )


def _memory(story: Story) -> dict[str, float]:
    """GB that each measured variant needs by the model's config; those whose config cannot be read
    are left out."""
    found = {}
    for one, item in zip(story.subjects, story.run.variants, strict=True):
        if item.measurement is not None:
            with suppress(LmflowsError, KeyError):
                found[one.label] = figure(item, "memory")
    return found


def _ratios(story: Story) -> Iterator[tuple[Subject, float]]:
    for one in story.subjects:
        ratio = 1.0 if one.parent else one.evidence.perplexity_ratio if one.evidence else math.inf
        if math.isfinite(ratio):
            yield one, ratio


def _speeds(story: Story) -> tuple[str, str, dict[str, float], str] | None:
    """Tokens/s of each variant under the load, or else at the batch size, that most of them share;
    None with fewer than two."""
    tested = _same_load([one for one in story.subjects if one.load])
    if len(tested) > 1:
        name = next(iter(tested.values())).load.name
        counts = ", ".join(f"{label} {len(result.rows.e2e)}" for label, result in tested.items())
        return (
            "throughput",
            f"new tokens/s at {name}",
            {label: result.tokens_per_second for label, result in tested.items()},
            f"n (requests): {counts}",
        )
    timed = {
        one.label: {speed.batch_size: speed for speed in one.measurement.speeds}
        for one in story.subjects
        if one.measurement and one.measurement.speeds
    }
    common = set.intersection(*map(set, timed.values())) if len(timed) > 1 else set()
    if not common:
        return None
    batch = max(common)
    counts = ", ".join(f"{label} {len(found[batch].decode)}" for label, found in timed.items())
    return (
        "decode speed",
        f"new tokens/s at batch size {batch}",
        {label: found[batch].decode_median for label, found in timed.items()},
        f"n (rounds): {counts}",
    )


def _engine_speed(story: Story) -> Iterator[Plot]:
    curves, counts = [], []
    for one in story.subjects:
        if one.measurement and one.measurement.speeds:
            speeds = sorted(one.measurement.speeds, key=lambda speed: speed.batch_size)
            curves.append(
                Curve(
                    one.label,
                    tuple(float(speed.batch_size) for speed in speeds),
                    tuple(speed.decode_median for speed in speeds),
                    low=tuple(min(speed.decode) for speed in speeds),
                    high=tuple(max(speed.decode) for speed in speeds),
                )
            )
            counts.append(f"{one.label} {len(speeds[0].decode)}")
    if curves:
        yield Plot(
            key="decode",
            title="Decode speed against batch size",
            svg=plots.throughput(curves, "batch size", "new tokens/s"),
            caption=(
                "New tokens per second over the whole batch, at the engine without a server:"
                " medians, and lines from the slowest to the fastest round. n (rounds at each"
                f" batch size): {', '.join(counts)}."
            ),
            description="; ".join(
                f"{curve.label}: "
                + ", ".join(
                    f"{y:.0f} at batch size {x:g}" for x, y in zip(curve.x, curve.y, strict=True)
                )
                for curve in curves
            ),
        )


def _closed_loops(one: Subject) -> list[LoadResult]:
    return (
        [result for result in one.load.results if result.load.concurrency is not None]
        if one.load
        else []
    )


def _same_load(tested: list[Subject]) -> dict[str, LoadResult]:
    """The results of the heaviest load that every one of these bore with a valid result;
    concurrency before rates."""
    each = [
        {result.load: result for result in one.load.results if result.valid}
        for one in tested
        if one.load
    ]
    common = set.intersection(*map(set, each)) if each else set()
    if not common:
        return {}
    heaviest = max(common, key=lambda load: (load.concurrency or 0, load.rate_per_second or 0.0))
    return {one.label: results[heaviest] for one, results in zip(tested, each, strict=True)}


def _values(result: LoadResult, metric: str) -> list[float]:
    rows = result.rows
    values: tuple[float | None, ...] = {"ttft": rows.ttft, "tpot": rows.tpot, "e2e": rows.e2e}[
        metric
    ]
    factor = 1e3 if metric == "tpot" else 1.0
    return [
        factor * value
        for value, status in zip(values, rows.status, strict=True)
        if status == OK and value is not None
    ]
