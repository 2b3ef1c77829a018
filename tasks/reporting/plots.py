"""The plots of the report page: what is drawn where, and in which words.

Knows nothing of artifacts: it is given numbers and words, and a plot without numbers is not drawn.
`tasks.reporting.drawing` has the style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from artifacts.records.report import Difference
from tasks.reporting.drawing import (
    BAD,
    BAND,
    DASHES,
    INK,
    MARKERS,
    PAPER,
    SERIES,
    SOFT,
    Drawing,
    pen,
)
from tasks.reporting.text import percent

MOST_STEPS = 240  # points of a distribution's curve: more cannot be told apart on a screen
MARGIN_LINE: dict[str, Any] = {"color": BAD, "lw": 1.6, "ls": DASHES[1]}
FAR_APART = 3  # ratios beyond it are drawn on a logarithmic axis


@dataclass(frozen=True)
class Plot:
    """One figure of the page. `description` says in words what it shows; `caption` has the n of
    every figure in it."""

    key: str
    title: str
    caption: str
    description: str
    svg: str


@dataclass(frozen=True)
class Interval:
    """One row of the forest plot: a ratio with its limits, and the verdict."""

    label: str
    value: float
    low: float
    high: float
    outcome: str


@dataclass(frozen=True)
class Curve:
    """Points of one variant, with the range of each; `hollow` are points that do not count (invalid
    runs)."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    hollow: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Option:
    """One variant of the trade-off: its quality (perplexity ratio, lower is better) and what is
    traded for it."""

    label: str
    ratio: float
    other: float
    dominated: bool = field(default=False, compare=False)


def paired_differences(
    differences: Sequence[float], margin: float, difference: Difference | None
) -> str:
    """Differences in nats a token, one a document, sorted; with zero, the margin, and the mean with
    its interval."""
    with Drawing(3.5) as drawing:
        axes = drawing.axes()
        values = np.sort(np.asarray(differences, np.float64))
        ranks = np.arange(1, len(values) + 1)
        if difference is not None:
            axes.axhspan(
                difference.low,
                difference.high,
                color=BAND,
                lw=0,
                zorder=0,
                label=f"{percent(difference.confidence)} interval of the mean",
            )
            axes.axhline(difference.mean, color=SERIES[0], lw=2, label="mean")
        axes.axhline(0, color=INK, lw=1)
        axes.axhline(margin, label="margin", **MARGIN_LINE)
        axes.vlines(ranks, 0, values, color=SOFT, lw=0.8)
        axes.plot(
            ranks,
            values,
            "o",
            ms=4.5,
            mfc=SERIES[0],
            mec=PAPER,
            mew=0.5,
            ls="none",
            label="a document",
        )
        axes.set_xlim(0, len(values) + 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.set(xlabel="documents, from gain to loss", ylabel="loss, nats a token")
        axes.grid(axis="x", visible=False)
        drawing.legend()
        return drawing.svg()


def forest(rows: Sequence[Interval], margin: float) -> str:
    """Perplexity ratios with their intervals, one row each, with 1 and the margin (a ratio);
    logarithmic if they lie far apart."""
    roomy = max(len(row.label) for row in rows) > 14  # the figures get a line of their own
    with Drawing(1.15 + (0.75 if roomy else 0.56) * len(rows)) as drawing:
        axes = drawing.axes()
        top = max([margin, *(row.high for row in rows)])
        if top > FAR_APART:
            axes.set_xscale("log")
        axes.axvline(1, color=INK, lw=1)
        axes.axvline(margin, **MARGIN_LINE)
        for number, row in enumerate(rows):
            _forest_row(axes, number, row, roomy=roomy)
        axes.set_ylim(len(rows) - 0.6, -0.85)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.08)
        axes.set_xlabel(f"perplexity ratio; dashed: the margin, {margin:g}")
        if top <= FAR_APART:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        return drawing.svg()


def _forest_row(axes: Axes, number: int, row: Interval, *, roomy: bool) -> None:
    ends = [row.low, row.high]
    axes.plot(ends, [number, number], color=SERIES[0], lw=2.4, solid_capstyle="butt")
    axes.plot(ends, [number, number], "|", color=SERIES[0], ms=9, mew=2)
    axes.plot(row.value, number, "D", ms=7, mfc=SERIES[0], mec=PAPER, mew=0.8)
    figures = f"{_ratio(row.value)} [{_ratio(row.low)}, {_ratio(row.high)}], {row.outcome}"
    axes.annotate(
        f"{row.label}:\n{figures}" if roomy else f"{row.label}: {figures}",
        (0.0, number - 0.22),
        xycoords=("axes fraction", "data"),
        va="bottom",
        ha="left",
        annotation_clip=False,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
    )


def distributions(panels: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> str:
    """Cumulative distributions, one panel for each quantity (its name and unit; values of each
    variant), one above the other."""
    with Drawing(0.5 + 1.85 * len(panels)) as drawing:
        all_axes = drawing.figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, (label, variants) in zip(all_axes, panels, strict=True):
            for number, (name, values) in enumerate(variants.items()):
                x, shares = _steps(values)
                axes.step(x, shares * 100, where="post", label=name, **pen(number))
            axes.set(xlabel=label, ylim=(0, 100), yticks=(0, 50, 100), ylabel="requests, %")
            axes.set_xlim(left=0)
        drawing.legend(of=all_axes[0])
        return drawing.svg()


def _steps(values: Sequence[float]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Values in order, and the share of all values up to each; at most MOST_STEPS of them."""
    ordered = np.sort(np.asarray(values, np.float64))
    places = np.linspace(0, len(ordered) - 1, min(len(ordered), MOST_STEPS))
    kept = np.unique(places.round().astype(int))
    return np.r_[ordered[0], ordered[kept]], np.r_[0.0, (kept + 1) / len(ordered)]


def throughput(curves: Sequence[Curve], xlabel: str, ylabel: str) -> str:
    """Throughput against concurrency or batch size, with the range of each point where there is
    one."""
    with Drawing(3.4) as drawing:
        axes = drawing.axes()
        ticks = sorted({value for curve in curves for value in curve.x})
        for number, curve in enumerate(curves):
            _curve(axes, number, curve)
        if len(ticks) > 2 and ticks[-1] > 4 * ticks[0]:
            axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        drawing.legend()
        return drawing.svg()


def _curve(axes: Axes, number: int, curve: Curve) -> None:
    style = pen(number)
    axes.plot(
        curve.x,
        curve.y,
        marker=MARKERS[number % len(MARKERS)],
        ms=6,
        mec=PAPER,
        mew=0.6,
        label=curve.label,
        **style,
    )
    if curve.low:
        axes.vlines(curve.x, curve.low, curve.high, color=style["color"], lw=1.2)
    points = zip(curve.x, curve.y, curve.hollow, strict=False)
    hollow = [(x, y) for x, y, is_hollow in points if is_hollow]
    if hollow:
        x, y = zip(*hollow, strict=True)
        axes.plot(x, y, "o", ms=11, mfc="none", mec=BAD, mew=1.6, ls="none")


def with_dominated(options: Sequence[Option], *, more_is_better: bool) -> list[Option]:
    """Mark the variants that another one beats in one respect without losing in the other."""
    sign = 1 if more_is_better else -1

    def beaten(option: Option) -> bool:
        return any(
            other.ratio <= option.ratio
            and sign * other.other >= sign * option.other
            and (other.ratio, other.other) != (option.ratio, option.other)
            for other in options
        )

    return [replace(option, dominated=beaten(option)) for option in options]


def pareto(options: Sequence[Option], margin: float, xlabel: str) -> str:
    """Quality against speed or memory: those that no other beats are filled and joined, the others
    hollow."""
    with Drawing(3.4) as drawing:
        axes = drawing.axes()
        undominated = [option for option in options if not option.dominated]
        front = sorted(undominated, key=lambda option: (option.other, option.ratio))
        axes.plot(
            [option.other for option in front],
            [option.ratio for option in front],
            color=SOFT,
            lw=1.2,
            ls=DASHES[2],
            zorder=1,
        )
        axes.axhline(margin, **MARGIN_LINE)
        for number, option in enumerate(options):
            colour = SERIES[number % len(SERIES)]
            axes.plot(
                option.other,
                option.ratio,
                MARKERS[number % len(MARKERS)],
                ms=9,
                mfc="none" if option.dominated else colour,
                mec=colour,
                mew=1.8,
                label=f"{option.label} (dominated)" if option.dominated else option.label,
            )
        if max([margin, *(option.ratio for option in options)]) > FAR_APART:
            axes.set_yscale("log")
        axes.margins(0.14, 0.18)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.set(xlabel=xlabel, ylabel="perplexity ratio")
        drawing.legend()
        return drawing.svg()


def _ratio(value: float) -> str:
    return f"{value:.4f}" if value < 10 else f"{value:.3g}"
