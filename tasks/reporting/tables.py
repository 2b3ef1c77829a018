"""The tables of the report's page, as text: each row a mapping from heading to cell. Knows nothing
of HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifacts.records.checks import CheckResult
from artifacts.records.load_results import LoadResult, Percentiles

if TYPE_CHECKING:
    from tasks.reporting.page import Story

Row = dict[str, str]


@dataclass(frozen=True)
class Check:
    """A check with a word for what came of it."""

    result: CheckResult
    state: str
    sign: str


@dataclass(frozen=True)
class Machine:
    """What some variants were measured on, and with what."""

    labels: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


def checks(story: Story) -> list[Check]:
    """Failed ones first, then passed, then those that could not be judged."""
    states = {False: ("failed", "✕"), True: ("passed", "✓"), None: ("not applicable", "–")}
    order = [False, True, None]
    return [
        Check(one, *states[one.passed])
        for one in sorted(story.evidence.checks, key=lambda check: order.index(check.passed))
    ]


def engine_table(story: Story) -> list[Row]:
    """What the engines did at each batch size."""
    return [
        {
            "variant": one.label,
            "batch size": str(speed.batch_size),
            "prefill tokens/s": f"{speed.prefill_median:,.0f}",
            "decode tokens/s": f"{speed.decode_median:,.0f}",
            "prompt tokens": str(speed.prompt_tokens),
            "new tokens": str(speed.new_tokens),
            "n (rounds)": str(len(speed.decode)),
        }
        for one in story.subjects
        if one.measurement
        for speed in one.measurement.speeds
    ]


def load_table(story: Story) -> list[Row]:
    """Every load on every variant: one row each, the invalid ones with their reason."""
    return [
        _load_row(one.label, result)
        for one in story.subjects
        if one.load
        for result in one.load.results
    ]


def load_notes(story: Story) -> list[str]:
    """What the reader of valid results should know, each once with the loads it is about."""
    found: dict[str, list[str]] = {}
    for one in story.subjects:
        for result in one.load.results if one.load else ():
            for note in result.notes:
                found.setdefault(note, []).append(f"{one.label} at {result.load.name}")
    return [f"{', '.join(places)}: {note}" for note, places in found.items()]


def machines(story: Story) -> list[Machine]:
    """Hardware, engine and versions; variants with the same ones together."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for one in story.subjects:
        if one.measurement is None:
            continue
        measured = one.measurement
        facts = [
            ("engine", f"{measured.engine} (runtime {measured.runtime})"),
            *measured.hardware.items(),
            *measured.versions.items(),
        ]
        if one.load and one.load.results:
            last = one.load.results[-1].environment
            facts += [
                (f"load test: {key}", value)
                for key, value in (last.fingerprint | last.engine | last.client).items()
                if key != "artifact"
            ]
            for gpu in last.gpus:
                throttle = (
                    ", ".join(
                        f"{reason} {share:.0%}" for reason, share in gpu.throttle.items() if share
                    )
                    or "none"
                )
                clock = f"{gpu.sm_clock_mhz.median:.0f} MHz, " if gpu.sm_clock_mhz else ""
                facts.append(
                    (
                        f"load test: GPU {gpu.index}",
                        f"{gpu.name}, {clock}throttled: {throttle} (n = {gpu.samples} samples)",
                    )
                )
        found.setdefault(tuple(facts), []).append(one.label)
    return [Machine(tuple(labels), facts) for facts, labels in found.items()]


def _load_row(label: str, result: LoadResult) -> Row:
    failed = ", ".join(f"{count} {what}" for what, count in result.errors.items())
    row = {
        "variant": label,
        "load": result.load.name,
        "requests": f"{len(result.rows.e2e):,}",
        "requests/s": f"{result.requests_per_second:,.2f}",
        "new tokens/s": f"{result.tokens_per_second:,.0f}",
    }
    columns: tuple[tuple[str, str, float, float, str], ...] = (
        ("first token, median", "ttft", 50, 1, "s"),
        ("first token, p99", "ttft", 99, 1, "s"),
        ("further token, median", "tpot", 50, 1e3, "ms"),
        ("further token, p99", "tpot", 99, 1e3, "ms"),
        ("whole answer, median", "e2e", 50, 1, "s"),
        ("whole answer, p99", "e2e", 99, 1, "s"),
    )
    for name, metric, percent, factor, unit in columns:
        row[name] = _percentile(getattr(result, metric), percent, factor, unit)
    if result.within_slo is not None:
        row["within the goal"] = (
            f"{result.within_slo.value:.1%} [{result.within_slo.low:.1%},"
            f" {result.within_slo.high:.1%}]"
        )
    return row | {
        "failed": failed or "none",
        "valid": "yes" if result.valid else f"no: {'; '.join(result.problems)}",
    }


def _percentile(found: Percentiles, percent: float, factor: float, unit: str) -> str:
    point = next((one for one in found.points if one.percent == percent), None)
    if point is None or point.value is None:
        return "too few"
    interval = (
        ""
        if point.low is None or point.high is None
        else f" [{point.low * factor:.3g}, {point.high * factor:.3g}]"
    )
    return f"{point.value * factor:.3g} {unit}{interval}"
