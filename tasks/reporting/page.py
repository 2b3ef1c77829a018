"""The report's page: everything that a run or a comparison has found, in one HTML file that needs
nothing else.

`render` fills the template from `tasks.reporting.data`, its tables, figures and summary. All text
is escaped, and what a model has said is shown as `tasks.reporting.text` shows it.
"""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from configs.units import size
from tasks.reporting import figures, speed_figures, summary, tables
from tasks.reporting.data import ReportData
from tasks.reporting.drawing import embed
from tasks.reporting.plots import Plot
from tasks.reporting.text import shown

WIDEST_CELL = 28  # characters that a cell shows in one line
# of the table of variants; the page has a table of its own for them
SPEEDS = ("prefill tokens/s", "decode tokens/s")
SIGNS = {"PASS": "✓", "FAIL": "✕", "INCONCLUSIVE": "?", "ANOMALOUS": "!"}


def render(data: ReportData) -> str:
    """The page as HTML: one file, no script, nothing fetched from anywhere."""
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            run=data.run,
            verdict=data.verdict,
            evidence=data.evidence,
            signs=SIGNS,
            headline=summary.headline(data),
            explanation=summary.explanation(data),
            tiles=list(summary.tiles(data)),
            quality=[*figures.quality(data), *figures.trade_offs(data)],
            speed=list(speed_figures.speed(data)),
            variants=_variants(data),
            tasks=tables.task_rows(data),
            checks=tables.checks(data),
            loads=tables.load_table(data),
            speeds=tables.engine_table(data),
            notes=tables.load_notes(data),
            machines=tables.machines(data),
            steps=tables.step_rows(data.run),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {
        "size": size,
        "short": _short,
        "number": _number,
        "wide": _is_wide,
        "figure": _figure,
    }
    environment.tests["digest"] = _is_digest
    return environment


def _variants(data: ReportData) -> list[tables.Row]:
    return [
        {head: cell for head, cell in row.items() if head not in SPEEDS}
        for row in tables.variant_rows(data)
    ]


def _visible(value: object) -> object:
    """Text, but no markup, which is a subclass of it."""
    return shown(value) if type(value) is str else value


def _short(digest: str) -> str:
    return digest[:12]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _is_wide(cell: str) -> bool:
    return max(len(line) for line in cell.split("\n")) > WIDEST_CELL


def _is_digest(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{40,128}", text) is not None


def _figure(plot: Plot) -> Markup:
    title = str(escape(plot.title))
    return Markup(embed(plot.svg, plot.key, title, str(escape(plot.description))))
