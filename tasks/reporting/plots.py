"""The plots of the report page, as SVG for a web page.

Each is drawn for a phone: narrow, with large type, and text that stays text. Colours are names that
the page's style sheet fills in, for light, dark and paper; markers and line styles say the same
without colour. Knows nothing of artifacts: it is given numbers and words, and a plot without
numbers is not drawn.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from artifacts.records.report import Difference

WIDTH = 4.6  # inches of 72 units: a phone shows a unit as one pixel, a desktop as one and a half
FONT = 11.0  # units
INK, SOFT, LINE, BAND, PAPER = "#1b1f24", "#59636e", "#d1d9e1", "#dbe4ee", "#fefefe"
# Okabe and Ito: told apart with any kind of colour vision; the page gives each a name
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
BAD = "#b3261e"
NAMES = {INK: "ink", SOFT: "soft", LINE: "line", BAND: "band", PAPER: "paper", BAD: "bad"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES)
}
MARKERS, DASHES = (
    ("o", "s", "^", "D", "v", "P"),
    (
        "-",
        (0, (5, 1.6)),
        (0, (1.4, 1.2)),
        (0, (6, 1.5, 1.4, 1.5)),
        (0, (3, 1)),
        (0, (8, 2)),
    ),
)
WIDEST_LEGEND = 38  # characters side by side
MOST_STEPS = 240  # points of a distribution's curve: more cannot be told apart on a screen
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lmflows",
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.labelsize": FONT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "legend.fontsize": FONT,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "axes.formatter.use_mathtext": False,
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
}
_LOCK = threading.Lock()  # matplotlib's settings are the process's, and flows run in threads


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


def paired(differences: Sequence[float], margin: float, difference: Difference | None) -> str:
    """Differences in nats a token, one a document, sorted; with zero, the margin, and the mean with
    its interval."""
    with _Drawing(3.5) as drawing:
        axes = drawing.axes()
        values = np.sort(np.asarray(differences, np.float64))
        ranks = np.arange(1, len(values) + 1)
        if difference is not None:
            confidence = f"{difference.confidence * 100:.4g}%"
            axes.axhspan(
                difference.low,
                difference.high,
                color=BAND,
                lw=0,
                zorder=0,
                label=f"{confidence} interval of the mean",
            )
            axes.axhline(difference.mean, color=SERIES[0], lw=2, label="mean")
        axes.axhline(0, color=INK, lw=1)
        axes.axhline(margin, color=BAD, lw=1.6, ls=DASHES[1], label="margin")
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
    with _Drawing(1.15 + (0.75 if roomy else 0.56) * len(rows)) as drawing:
        axes = drawing.axes()
        top = max([margin, *(row.high for row in rows)])
        if top > 3:
            axes.set_xscale("log")
        axes.axvline(1, color=INK, lw=1)
        axes.axvline(margin, color=BAD, lw=1.6, ls=DASHES[1])
        for number, row in enumerate(rows):
            axes.plot(
                [row.low, row.high],
                [number, number],
                color=SERIES[0],
                lw=2.4,
                solid_capstyle="butt",
            )
            axes.plot([row.low, row.high], [number, number], "|", color=SERIES[0], ms=9, mew=2)
            axes.plot(row.value, number, "D", ms=7, mfc=SERIES[0], mec=PAPER, mew=0.8)
            figures = f"{_ratio(row.value)} [{_ratio(row.low)}, {_ratio(row.high)}], {row.outcome}"
            axes.annotate(
                f"{row.label}:{chr(10) if roomy else ' '}{figures}",
                (0.0, number - 0.22),
                xycoords=("axes fraction", "data"),
                va="bottom",
                ha="left",
                annotation_clip=False,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
            )
        axes.set_ylim(len(rows) - 0.6, -0.85)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.08)
        axes.set_xlabel(f"perplexity ratio; dashed: the margin, {margin:g}")
        if top <= 3:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        return drawing.svg()


def distributions(panels: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> str:
    """Cumulative distributions, one panel for each quantity (its name and unit; values of each
    variant), one above the other."""
    with _Drawing(0.5 + 1.85 * len(panels)) as drawing:
        everyone = drawing.figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, (label, variants) in zip(everyone, panels, strict=True):
            for number, (name, values) in enumerate(variants.items()):
                x = np.sort(np.asarray(values, np.float64))
                kept = np.unique(
                    np.linspace(0, len(x) - 1, min(len(x), MOST_STEPS)).round().astype(int)
                )
                axes.step(
                    np.r_[x[0], x[kept]],
                    np.r_[0.0, (kept + 1) / len(x)] * 100,
                    where="post",
                    label=name,
                    **_pen(number),
                )
            axes.set(xlabel=label, ylim=(0, 100), yticks=(0, 50, 100), ylabel="requests, %")
            axes.set_xlim(left=0)
        drawing.legend(of=everyone[0])
        return drawing.svg()


def throughput(curves: Sequence[Curve], xlabel: str, ylabel: str) -> str:
    """Throughput against concurrency or batch size, with the range of each point where there is
    one."""
    with _Drawing(3.4) as drawing:
        axes = drawing.axes()
        ticks = sorted({value for curve in curves for value in curve.x})
        for number, curve in enumerate(curves):
            pen = _pen(number)
            axes.plot(
                curve.x,
                curve.y,
                marker=MARKERS[number % len(MARKERS)],
                ms=6,
                mec=PAPER,
                mew=0.6,
                label=curve.label,
                **pen,
            )
            if curve.low:
                axes.vlines(curve.x, curve.low, curve.high, color=pen["color"], lw=1.2)
            hollow = [
                (x, y) for x, y, out in zip(curve.x, curve.y, curve.hollow, strict=False) if out
            ]
            if hollow:
                axes.plot(
                    *zip(*hollow, strict=True), "o", ms=11, mfc="none", mec=BAD, mew=1.6, ls="none"
                )
        if len(ticks) > 2 and ticks[-1] > 4 * ticks[0]:
            axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        drawing.legend()
        return drawing.svg()


def with_dominated(options: Sequence[Option], *, more_is_better: bool) -> list[Option]:
    """Mark the variants that another one beats in one respect without losing in the other."""
    sign = 1 if more_is_better else -1

    def beaten(one: Option) -> bool:
        return any(
            other.ratio <= one.ratio
            and sign * other.other >= sign * one.other
            and (other.ratio, other.other) != (one.ratio, one.other)
            for other in options
        )

    return [Option(one.label, one.ratio, one.other, beaten(one)) for one in options]


def pareto(options: Sequence[Option], margin: float, xlabel: str) -> str:
    """Quality against speed or memory: those that no other beats are filled and joined, the others
    hollow."""
    with _Drawing(3.4) as drawing:
        axes = drawing.axes()
        front = sorted(
            (one for one in options if not one.dominated), key=lambda one: (one.other, one.ratio)
        )
        axes.plot(
            [one.other for one in front],
            [one.ratio for one in front],
            color=SOFT,
            lw=1.2,
            ls=DASHES[2],
            zorder=1,
        )
        axes.axhline(margin, color=BAD, lw=1.6, ls=DASHES[1])
        for number, one in enumerate(options):
            colour = SERIES[number % len(SERIES)]
            axes.plot(
                one.other,
                one.ratio,
                MARKERS[number % len(MARKERS)],
                ms=9,
                mfc="none" if one.dominated else colour,
                mec=colour,
                mew=1.8,
                label=f"{one.label}{' (dominated)' if one.dominated else ''}",
            )
        if max([margin, *(one.ratio for one in options)]) > 3:
            axes.set_yscale("log")
        axes.margins(0.14, 0.18)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.set(xlabel=xlabel, ylabel="perplexity ratio")
        drawing.legend()
        return drawing.svg()


def _ratio(value: float) -> str:
    return f"{value:.4f}" if value < 10 else f"{value:.3g}"


def _pen(number: int) -> dict[str, Any]:
    return {"color": SERIES[number % len(SERIES)], "linestyle": DASHES[number % len(DASHES)]}


class _Drawing:
    """A figure with the page's style, of this height in inches; nothing of it outlives the block,
    and no other is drawn meanwhile."""

    def __init__(self, height: float) -> None:
        self.height = height

    def __enter__(self) -> _Drawing:
        _LOCK.acquire()
        self.style = matplotlib.rc_context(STYLE)
        self.style.__enter__()
        self.figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
        return self

    def __exit__(self, *_: object) -> None:
        self.style.__exit__(None, None, None)
        _LOCK.release()

    def axes(self) -> Axes:
        return self.figure.add_subplot()

    def legend(self, of: Axes | None = None) -> None:
        """Above the plot, where it hides nothing; in two columns if they are not too wide for
        it."""
        handles, labels = (of or self.figure.axes[0]).get_legend_handles_labels()
        half = (len(labels) + 1) // 2
        widest = sum(max(map(len, column), default=0) for column in (labels[:half], labels[half:]))
        self.figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=2 if widest <= WIDEST_LEGEND else 1,
            handlelength=1.8,
            columnspacing=1.2,
            borderaxespad=0.1,
        )

    def svg(self) -> str:
        """For the page: no size, time or foreign name in it, and colours by name."""
        buffer = io.StringIO()
        self.figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
        text = buffer.getvalue()
        text = re.sub(
            r"<metadata>.*?</metadata>|<style.*?</style>",
            "",
            text[text.index("<svg") :],
            flags=re.DOTALL,
        )
        text = re.sub(
            r"(<svg\b[^>]*?) width=\"[^\"]*\"",
            r"\1",
            re.sub(r"(<svg\b[^>]*?) height=\"[^\"]*\"", r"\1", text, count=1),
            count=1,
        )
        text = re.sub(r" xmlns(:xlink)?=\"[^\"]*\"", "", text).replace("xlink:href", "href")
        return re.sub(
            r"#[0-9a-f]{6}\b",
            lambda found: (
                f"var(--{NAMES[found[0]]}, {found[0]})" if found[0] in NAMES else found[0]
            ),
            text,
        )


def embed(svg: str, key: str, title: str, description: str) -> str:
    """Make an SVG a part of a page: ids of its own, a title and a description. `title` and
    `description` are HTML already."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{key}-\1"', svg)
    head = f'<svg role="img" aria-labelledby="{key}-title {key}-description" '
    end = svg.index(">")
    return (
        head + svg[len("<svg ") : end + 1] + f'<title id="{key}-title">{title}</title><desc'
        f' id="{key}-description">{description}</desc>' + svg[end + 1 :].strip()
    )
