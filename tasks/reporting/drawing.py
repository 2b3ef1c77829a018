"""How the plots of the report page are drawn: as SVG for a web page.

Each is drawn for a phone: narrow, with large type, and text that stays text. Colours are names that
the page's style sheet fills in, for light, dark and paper; markers and line styles say the same
without colour.
"""

from __future__ import annotations

import io
import re
import threading
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 4.6  # inches of 72 units: a phone shows a unit as one pixel, a desktop as one and a half
FONT = 11.0  # units
INK, SOFT, LINE, BAND, PAPER = "#1b1f24", "#59636e", "#d1d9e1", "#dbe4ee", "#fefefe"
# Okabe and Ito: told apart with any kind of colour vision; the page gives each a name
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
BAD = "#b3261e"
NAMES = {INK: "ink", SOFT: "soft", LINE: "line", BAND: "band", PAPER: "paper", BAD: "bad"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES)
}
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 1.6)), (0, (1.4, 1.2)), (0, (6, 1.5, 1.4, 1.5)), (0, (3, 1)), (0, (8, 2)))
WIDEST_LEGEND = 38  # characters side by side
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


def pen(number: int) -> dict[str, Any]:
    """Colour and line style of the variant with this number."""
    return {"color": SERIES[number % len(SERIES)], "linestyle": DASHES[number % len(DASHES)]}


class Drawing:
    """A figure with the page's style, of this height in inches; nothing of it outlives the block,
    and no other is drawn meanwhile."""

    def __init__(self, height: float) -> None:
        self.height = height

    def __enter__(self) -> Drawing:
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
        text = text[text.index("<svg") :]
        text = re.sub("<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
        text = re.sub(r"(<svg\b[^>]*?) height=\"[^\"]*\"", r"\1", text, count=1)
        text = re.sub(r"(<svg\b[^>]*?) width=\"[^\"]*\"", r"\1", text, count=1)
        text = re.sub(r" xmlns(:xlink)?=\"[^\"]*\"", "", text).replace("xlink:href", "href")
        return re.sub(r"#[0-9a-f]{6}\b", _by_name, text)


def _by_name(colour: re.Match[str]) -> str:
    if colour[0] not in NAMES:
        return colour[0]
    return f"var(--{NAMES[colour[0]]}, {colour[0]})"


def embed(svg: str, key: str, title: str, description: str) -> str:
    """Make an SVG a part of a page: ids of its own, a title and a description. `title` and
    `description` are HTML already."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{key}-\1"', svg)
    end = svg.index(">")
    attributes = svg[len("<svg ") : end]
    content = svg[end + 1 :].strip()
    return (
        f'<svg role="img" aria-labelledby="{key}-title {key}-description" {attributes}>'
        f'<title id="{key}-title">{title}</title>'
        f'<desc id="{key}-description">{description}</desc>{content}'
    )
