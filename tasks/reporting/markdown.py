"""The report in short, as markdown for the terminal and the Prefect UI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from configs.units import size
from tasks.reporting.data import Ancestor, ReportData
from tasks.reporting.summary import explanation, headline
from tasks.reporting.tables import Row, step_rows, task_rows, variant_rows
from tasks.reporting.text import one_line, quoted

RESULTS = {True: "passed", False: "failed", None: "not applicable"}


def markdown(data: ReportData) -> str:
    """The whole report in short: the verdict first, then what it rests on. What there is nothing of
    has no heading."""
    parts = [
        f"# {data.run.name}: {data.verdict.outcome}",
        headline(data),
        explanation(data),
        "\n".join(f"- {reason}" for reason in data.verdict.reasons),
        *_section("Attempts", _attempts(data)),
        _choice(data),
        table(variant_rows(data)),
        problems(data),
        _measured(data),
        *_section("Tasks", table(task_rows(data))),
        *_section("Generation checks", _checks(data)),
        *_section("Answers", _answers(data)),
        *_section("Recipe", _recipe(data)),
        *_section("Steps", table(step_rows(data.run))),
        *_section("Lineage", "\n".join(_lineage(data.lineage))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def problems(data: ReportData) -> str:
    """Why a variant has no figures, in full; empty if all have some."""
    return "\n\n".join(
        f"**{subject.label}**: {subject.problem}" for subject in data.subjects if subject.problem
    )


def _attempts(data: ReportData) -> str:
    if len(data.attempts) < 2:
        return ""
    return table(
        [
            {
                "attempt": str(number),
                "change": attempt.change or "the recipe as it was asked for",
                "verdict": attempt.verdict.outcome,
                "ratio": f"{attempt.evidence.perplexity_ratio:.4f}",
                "size": size(attempt.model_bytes),
                "kept": "yes" if attempt.kept else "",
            }
            for number, attempt in enumerate(data.attempts, 1)
        ]
    )


def _choice(data: ReportData) -> str:
    choice = data.run.choice
    if choice is None:
        return ""
    figures = ", ".join(f"{variant} {figure:g} {choice.unit}" for variant, figure in choice.figures)
    return f"**Chosen for {choice.objective}**: {choice.why} ({figures})"


def _measured(data: ReportData) -> str:
    evidence = data.evidence
    apart = (
        f"of which {evidence.overlap} share a passage with the calibration text"
        if evidence.overlap
        else "that share no passage with the calibration text"
    )
    measurement = data.served.measurement
    hardware = f" Hardware: {_listed(measurement.hardware)}." if measurement else ""
    return (
        f"Measured through {evidence.engine} (runtime {evidence.runtime};"
        f" {_listed(evidence.versions)})\n"
        f"on {evidence.tokens} tokens of {len(evidence.documents)} held-out documents {apart}."
        f" KL divergence: mean {evidence.kl.mean:.4f}, median {evidence.kl.median:.4f}, 99.9%"
        f" {evidence.kl.p999:.4f}, largest {evidence.kl.largest:.4f} nats.{hardware}"
    )


def _checks(data: ReportData) -> str:
    return table(
        [
            {
                "check": check.name,
                "result": RESULTS[check.passed],
                "n": str(check.n),
                "new failures": str(check.new_failures),
                "why": one_line(check.why),
            }
            for check in data.evidence.checks
        ]
    )


def _answers(data: ReportData) -> str:
    return "\n\n".join(
        f"**{one_line(sample.prompt)}**\n\n- {data.parent_label}: {quoted(sample.parent)}\n"
        f"- {data.served.label}: {quoted(sample.candidate)}"
        for sample in data.evidence.samples
    )


def _recipe(data: ReportData) -> str:
    versions = {
        key.removeprefix("versions."): value
        for key, value in data.recipe.items()
        if key.startswith("versions.")
    }
    settings = {key: value for key, value in data.recipe.items() if not key.startswith("versions.")}
    model = data.run.model
    parts = []
    if model:
        parts.append(f"{model.architecture}, {model.parameters / 1e6:.0f} million parameters.")
    if settings:
        parts.append(f"{_listed(settings)}.")
    if versions:
        parts.append(f"Versions: {_listed(versions)}.")
    return "\n\n".join(part for part in (" ".join(parts), _smoke_test(data)) if part)


def _smoke_test(data: ReportData) -> str:
    smoke_test = data.run.smoke_test
    if smoke_test is None:
        return ""
    return (
        f"The fp16 smoke test took {smoke_test.load_seconds:.1f} s to load, generated"
        f" {smoke_test.tokens_per_second:.1f} tokens/s and\n"
        f"took {size(smoke_test.peak_rss_bytes)} of memory at most."
    )


def _lineage(ancestor: Ancestor, depth: int = 0) -> Iterator[str]:
    again = " (see above)" if ancestor.again else ""
    yield f"{'  ' * depth}- {ancestor.role} `{ancestor.digest}`{again}"
    for parent in ancestor.parents:
        yield from _lineage(parent, depth + 1)


def _listed(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def _section(title: str, body: str) -> Iterator[str]:
    if body:
        yield f"## {title}"
        yield body


def table(rows: Sequence[Row]) -> str:
    """A markdown table; empty without rows."""
    if not rows:
        return ""
    heads = list(rows[0])
    lines = [_line(heads), "|" + "---|" * len(heads)]
    lines += [_line([row[head].replace("|", "\\|") for head in heads]) for row in rows]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
