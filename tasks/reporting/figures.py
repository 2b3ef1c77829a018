"""Which figures of quality the report's page has, and what their captions say: the loss on each
document, the ratio of each variant, and quality against speed and memory.

`tasks.reporting.plots` draws them; `tasks.reporting.speed_figures` has those of speed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from artifacts.records.report import Difference
from configs.errors import LmflowsError
from tasks.quality.objective import UNITS, figure
from tasks.reporting import plots
from tasks.reporting.data import ReportData, Subject
from tasks.reporting.plots import Interval, Option, Plot
from tasks.reporting.speed_figures import shared_speed
from tasks.reporting.text import percent


def quality(data: ReportData) -> Iterator[Plot]:
    """Paired differences by document, and the ratios of all variants."""
    if not data.itself:
        yield from _by_document(data)
    yield from _by_variant(data)


def _by_document(data: ReportData) -> Iterator[Plot]:
    margin = data.verdict.margin
    difference = data.verdict.difference
    losses = [
        (document.nll_candidate - document.nll_parent) / document.tokens
        for document in data.evidence.documents
        if document.tokens
    ]
    if not losses:
        return
    worse = sum(loss > 0 for loss in losses)
    beyond = sum(loss > margin for loss in losses)
    yield Plot(
        key="paired",
        title="Loss on each document",
        svg=plots.paired_differences(losses, margin, difference),
        caption=(
            f"How much less likely {data.served.label} finds each held-out document than"
            f" {data.parent_label}. {_mean(difference)}The margin is {margin:.4f} nats a token. n ="
            f" {len(losses)} documents, {data.evidence.tokens:,} tokens."
        ),
        description=(
            f"{worse} of {len(losses)} documents are less likely under {data.served.label},"
            f" {beyond} of them by more than the margin."
        ),
    )


def _mean(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return (
        f"The mean, weighted by tokens, is {difference.mean:+.4f}, its"
        f" {percent(difference.confidence)} interval {difference.low:+.4f} to"
        f" {difference.high:+.4f}. "
    )


def _by_variant(data: ReportData) -> Iterator[Plot]:
    intervals = [
        Interval(subject.label, *subject.verdict.difference.ratio, subject.verdict.outcome)
        for subject in data.subjects
        if subject.verdict and subject.verdict.difference and not subject.is_parent
    ]
    intervals = [interval for interval in intervals if math.isfinite(interval.high)]
    if not intervals:
        return
    margin = math.exp(data.verdict.margin)
    yield Plot(
        key="forest",
        title="Perplexity ratio of each variant",
        svg=plots.forest(intervals, margin),
        caption=(
            f"Perplexity over that of {data.parent_label}, with its interval. PASS needs the whole"
            f" interval left of the margin, {margin:g}. {_documents(data)}."
        ),
        description="; ".join(
            f"{interval.label} {interval.value:.4g}, {interval.low:.4g} to {interval.high:.4g},"
            f" {interval.outcome}"
            for interval in intervals
        ),
    )


# -- quality against something else


@dataclass(frozen=True)
class TradeOff:
    """What quality is set against: each variant's figure by its label, and how much was measured
    for it."""

    key: str
    what: str
    unit: str
    more_is_better: bool
    figures: dict[str, float]
    count: str


def trade_offs(data: ReportData) -> Iterator[Plot]:
    """Quality against speed, and against the size of the weights."""
    speed = shared_speed(data)
    if speed is not None:
        yield from _trade_off(
            data,
            TradeOff(
                key="pareto-speed",
                what=speed.what,
                unit=speed.unit,
                more_is_better=True,
                figures=speed.figures,
                count=f"{speed.count}; {_documents(data)}",
            ),
        )
    yield from _trade_off(
        data,
        TradeOff(
            key="pareto-memory",
            what="memory",
            unit=UNITS["memory"].replace(" of weights and of KV", ", weights and KV"),
            more_is_better=False,
            figures=_memory(data),
            count=f"{_documents(data)}; memory is counted, not measured",
        ),
    )


def _trade_off(data: ReportData, against: TradeOff) -> Iterator[Plot]:
    options = [
        Option(subject.label, ratio, against.figures[subject.label])
        for subject, ratio in _ratios(data)
        if subject.label in against.figures
    ]
    if len(options) < 2:
        return
    options = plots.with_dominated(options, more_is_better=against.more_is_better)
    better = "right" if against.more_is_better else "left"
    hollow = (
        " A hollow variant is dominated: another one is at least as good in both respects."
        if any(option.dominated for option in options)
        else ""
    )
    yield Plot(
        key=against.key,
        title=f"Quality against {against.what}",
        svg=plots.pareto(options, math.exp(data.verdict.margin), against.unit),
        caption=(
            f"Better is down and to the {better}; the dashed red line is the margin.{hollow}"
            f" {against.count}."
        ),
        description="; ".join(
            f"{option.label}: ratio {option.ratio:.4g}, {option.other:.4g}"
            f" ({against.unit}){', dominated' if option.dominated else ''}"
            for option in options
        ),
    )


def _documents(data: ReportData) -> str:
    return "n (documents): " + ", ".join(
        f"{subject.label} {len(subject.evidence.documents)}"
        for subject in data.subjects
        if subject.evidence and not subject.is_parent
    )


def _memory(data: ReportData) -> dict[str, float]:
    """GB that each measured variant needs by the model's config; those whose config cannot be read
    are left out."""
    found = {}
    for subject, outcome in zip(data.subjects, data.run.variants, strict=True):
        if outcome.measurement is not None:
            with suppress(LmflowsError, KeyError):
                found[subject.label] = figure(outcome, "memory")
    return found


def _ratios(data: ReportData) -> Iterator[tuple[Subject, float]]:
    """The perplexity ratio of each variant that has one; 1 of the parent."""
    for subject in data.subjects:
        if subject.is_parent:
            yield subject, 1.0
        elif subject.evidence and math.isfinite(subject.evidence.perplexity_ratio):
            yield subject, subject.evidence.perplexity_ratio
