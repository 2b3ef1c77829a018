"""The summary of a report, in plain words: the verdict in one sentence, what it rests on, and the
figures at the top."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from artifacts.records.evidence import perplexity
from configs.units import size
from tasks.reporting.data import ReportData, Subject
from tasks.reporting.text import percent

SAME = 5e-5  # ratios that are no nearer to 1 than this are told apart from it
AS_TIMES = 3  # a larger ratio is no percentage any more


@dataclass(frozen=True)
class Tile:
    """A figure at the top of the page: what, how much, and on what it rests."""

    what: str
    much: str
    on: str


def headline(data: ReportData) -> str:
    """The verdict in one sentence."""
    candidate = data.served.label
    parent = data.parent_label
    if data.itself and data.verdict.outcome == "PASS":
        return f"{candidate} is the baseline itself: nothing was quantized, so nothing was lost."
    return {
        "PASS": (
            f"{candidate} may stand in for {parent}: what it loses is within the margin that was"
            " set."
        ),
        "FAIL": f"{candidate} may not stand in for {parent}: it is not good enough.",
        "INCONCLUSIVE": (
            f"It is open whether {candidate} may stand in for {parent}: too little was measured to"
            " say."
        ),
        "ANOMALOUS": (
            f"Nothing can be said of {candidate} yet: the measurement itself cannot be right."
        ),
    }[data.verdict.outcome]


def explanation(data: ReportData) -> str:
    """What the verdict rests on, in words for somebody who has never seen a nat; empty without an
    interval."""
    difference = data.verdict.difference
    if difference is None or data.itself:
        return ""
    ratio, low, high = difference.ratio
    measured = (
        f"On {difference.tokens:,} tokens of {difference.documents} held-out documents its"
        " perplexity (how surprised a model is by real text) is"
    )
    if math.isinf(ratio):
        return (
            f"{measured} beyond all bounds: it is {difference.mean:,.0f} nats a token worse than"
            f" {data.parent_label}."
        )
    return (
        f"{measured} {_change(ratio)} that of {data.parent_label}. With"
        f" {percent(difference.confidence)} confidence the true figure lies between {_signed(low)}"
        f" and {_signed(high)}; the margin is {_signed(perplexity(data.verdict.margin))}."
    )


def tiles(data: ReportData) -> Iterator[Tile]:
    """The figures at the top."""
    evidence = data.evidence
    served = data.served
    if data.itself:
        yield Tile(
            "perplexity",
            f"{evidence.perplexity_parent:.4g}",
            f"of {served.label} (n = {evidence.tokens:,} tokens)",
        )
        yield Tile("size", size(served.model_bytes), "weights and tokenizer on disk")
        return
    yield from _ratio_tile(data)
    yield Tile(
        "same next token",
        f"{evidence.top1_agreement:.1%}",
        f"both rank the same token first (n = {evidence.tokens:,} tokens)",
    )
    if data.parent:
        yield from _size_tile(data.parent, served)
        yield from _speed_tile(data.parent, served)
    yield from _checks_tile(data)


def _ratio_tile(data: ReportData) -> Iterator[Tile]:
    difference = data.verdict.difference
    if difference:
        ratio, low, high = difference.ratio
        margin = perplexity(data.verdict.margin)
        yield Tile(
            "perplexity ratio",
            _plain(ratio),
            f"{_plain(low)} to {_plain(high)}, margin {margin:g} (n = {difference.documents}"
            " documents)",
        )


def _size_tile(parent: Subject, served: Subject) -> Iterator[Tile]:
    if parent.model_bytes and served.model_bytes:
        smaller = parent.model_bytes / served.model_bytes
        yield Tile(
            "size",
            f"{max(smaller, 1 / smaller):.2f}× {'smaller' if smaller >= 1 else 'larger'}",
            f"{size(served.model_bytes)} instead of {size(parent.model_bytes)}",
        )


def _speed_tile(parent: Subject, served: Subject) -> Iterator[Tile]:
    """Decode speed at the last batch size that both have; of the first in brackets."""
    if not (parent.measurement and served.measurement):
        return
    before = {speed.batch_size: speed for speed in parent.measurement.speeds}
    pairs = [
        (before[speed.batch_size], speed)
        for speed in served.measurement.speeds
        if speed.batch_size in before
    ]
    if not pairs:
        return
    old, new = pairs[-1]
    also = ""
    if len(pairs) > 1:
        first_old, first_new = pairs[0]
        gain = first_new.decode_median / first_old.decode_median
        also = f"; {gain:.2f}× at {first_new.batch_size}"
    yield Tile(
        "decode speed",
        f"{new.decode_median / old.decode_median:.2f}×",
        f"{new.decode_median:,.0f} instead of {old.decode_median:,.0f} tokens/s at batch size"
        f" {new.batch_size}{also} (n = {len(new.decode)} rounds)",
    )


def _checks_tile(data: ReportData) -> Iterator[Tile]:
    if data.evidence.checks:
        judged = [check for check in data.evidence.checks if check.passed is not None]
        passed = sum(bool(check.passed) for check in judged)
        probes = sum(check.n for check in judged)
        yield Tile(
            "checks",
            f"{passed} of {len(judged)}",
            f"passed, of those that could be judged (n = {probes} probes)",
        )


def _change(ratio: float) -> str:
    if abs(ratio - 1) < SAME:
        return "the same as"
    if ratio > AS_TIMES:
        return _times(ratio)
    return f"{abs(ratio - 1):.2%} {'above' if ratio > 1 else 'below'}"


def _signed(ratio: float) -> str:
    """A ratio as a change: +2.00%, or 12 times."""
    if ratio > AS_TIMES:
        return _times(ratio)
    return f"{ratio - 1:+.2%}".replace("-", "\N{MINUS SIGN}")


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if 100 <= ratio < 1e6 else f"{ratio:.3g} times"


def _plain(ratio: float) -> str:
    return "∞" if math.isinf(ratio) else f"{ratio:.4g}"
