"""The tables of a report, as text: each row a mapping from heading to cell. Knows nothing of HTML
and of markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from artifacts.records.checks import CheckResult
from artifacts.records.load_results import Environment, GpuState, LoadResult, Percentiles
from artifacts.records.measurement import Measurement, Speed
from artifacts.records.outcomes import RunOutcome
from configs.units import size
from tasks.reporting.data import ReportData, Subject
from tasks.reporting.text import one_line

Row = dict[str, str]
Fact = tuple[str, str]
COLUMNS = (
    "variant",
    "verdict",
    "size",
    "perplexity",
    "ratio",
    "top-1",
    "mean KL",
    "load",
    "GPU memory",
    "prefill tokens/s",
    "decode tokens/s",
)


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
    facts: tuple[Fact, ...]


# -- variants


def variant_rows(data: ReportData) -> list[Row]:
    """The table of variants. Each is judged like the served one; tokens/s are medians over the
    rounds, by batch size."""
    return in_order(
        [
            _variant_row(data, subject) | _performance(subject.measurement)
            for subject in data.subjects
        ]
    )


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Every row with the same columns, in the order of COLUMNS; one that no row has is left out."""
    there = {column for row in rows for column in row}
    return [{column: row.get(column, "") for column in COLUMNS if column in there} for row in rows]


def _variant_row(data: ReportData, subject: Subject) -> Row:
    row = {
        "variant": subject.label,
        "verdict": "",
        "size": size(subject.model_bytes),
        "perplexity": "",
        "ratio": "",
        "top-1": "",
        "mean KL": "",
    }
    evidence = subject.evidence
    verdict = subject.verdict
    if subject.problem:
        return row | {"verdict": one_line(subject.problem.split(";")[0])}
    if subject.is_parent:
        outcome = verdict.outcome if verdict else "PASS"
        return row | {
            "verdict": "baseline" if outcome == "PASS" else outcome,
            "perplexity": f"{data.evidence.perplexity_parent:.3f}",
            "ratio": "1",
        }
    if evidence is None or verdict is None:
        return row
    ratio = f"{evidence.perplexity_ratio:.4f}"
    if verdict.difference:
        _, low, high = verdict.difference.ratio
        ratio += f" [{low:.4f}, {high:.4f}]"
    return row | {
        "verdict": verdict.outcome,
        "perplexity": f"{evidence.perplexity_candidate:.3f}",
        "ratio": ratio,
        "top-1": f"{evidence.top1_agreement:.1%}",
        "mean KL": f"{evidence.kl.mean:.4f}",
    }


def _performance(measured: Measurement | None) -> Row:
    if measured is None:
        return {}
    row = {"load": f"{measured.load_seconds:.1f} s"}
    if measured.gpu_bytes is not None:
        row["GPU memory"] = size(measured.gpu_bytes)
    if measured.speeds:
        row["prefill tokens/s"] = _by_batch(measured.speeds, "prefill_median")
        row["decode tokens/s"] = _by_batch(measured.speeds, "decode_median")
    return row


def _by_batch(speeds: Sequence[Speed], figure: str) -> str:
    return ", ".join(f"{getattr(speed, figure):.0f} (batch {speed.batch_size})" for speed in speeds)


# -- the served variant


def task_rows(data: ReportData) -> list[Row]:
    """Accuracy of both models on the tasks, with the items that changed sides."""
    rows = []
    for task in data.evidence.tasks:
        broken = f", {task.broken_candidate} broken" if task.broken_candidate else ""
        drop = "none" if task.detectable_drop is None else f"{task.detectable_drop:.1%}"
        rows.append(
            {
                "task": task.task,
                "n": str(task.n),
                data.parent_label: f"{task.parent_accuracy:.1%}",
                data.served.label: f"{task.candidate_accuracy:.1%}",
                "lost": f"{task.lost}{broken}",
                "gained": str(task.gained),
                "flips": f"{task.flip_rate:.1%}",
                "p (worse)": f"{task.p_worse:.3g}",
                "p, all tasks": f"{task.p_worse_holm:.3g}",
                "p (two-sided)": f"{task.p_two_sided:.3g}",
                "smallest drop it could see": drop,
            }
        )
    return rows


def checks(data: ReportData) -> list[Check]:
    """Failed ones first, then passed, then those that could not be judged."""
    states = {False: ("failed", "✕"), True: ("passed", "✓"), None: ("not applicable", "–")}
    order = list(states)
    return [
        Check(check, *states[check.passed])
        for check in sorted(data.evidence.checks, key=lambda check: order.index(check.passed))
    ]


# -- steps


def step_rows(run: RunOutcome) -> list[Row]:
    """The table of steps; without a GPU it has no column for one."""
    with_gpu = any(step.peak_gpu_bytes is not None for step in run.steps)
    rows = []
    for step in run.steps:
        row = {
            "step": step.name,
            "seconds": f"{step.seconds:.1f}",
            "peak memory": size(step.peak_rss_bytes) if step.peak_rss_bytes else "",
        }
        if with_gpu:
            row["peak GPU memory"] = (
                "" if step.peak_gpu_bytes is None else size(step.peak_gpu_bytes)
            )
        rows.append(row)
    return rows


# -- speed


def engine_table(data: ReportData) -> list[Row]:
    """What the engines did at each batch size."""
    return [
        {
            "variant": subject.label,
            "batch size": str(speed.batch_size),
            "prefill tokens/s": f"{speed.prefill_median:,.0f}",
            "decode tokens/s": f"{speed.decode_median:,.0f}",
            "prompt tokens": str(speed.prompt_tokens),
            "new tokens": str(speed.new_tokens),
            "n (rounds)": str(len(speed.decode)),
        }
        for subject in data.subjects
        if subject.measurement
        for speed in subject.measurement.speeds
    ]


def load_table(data: ReportData) -> list[Row]:
    """Every load on every variant: one row each, the invalid ones with their reason."""
    return [
        _load_row(subject.label, result)
        for subject in data.subjects
        if subject.load
        for result in subject.load.results
    ]


def load_notes(data: ReportData) -> list[str]:
    """What the reader of valid results should know, each once with the loads it is about."""
    found: dict[str, list[str]] = {}
    for subject in data.subjects:
        for result in subject.load.results if subject.load else ():
            for note in result.notes:
                found.setdefault(note, []).append(f"{subject.label} at {result.load.name}")
    return [f"{', '.join(places)}: {note}" for note, places in found.items()]


def _load_row(label: str, result: LoadResult) -> Row:
    failed = ", ".join(f"{count} {what}" for what, count in result.errors.items())
    row = {
        "variant": label,
        "load": result.load.name,
        "requests": f"{len(result.rows.e2e):,}",
        "requests/s": f"{result.requests_per_second:,.2f}",
        "new tokens/s": f"{result.tokens_per_second:,.0f}",
        "first token, median": _seconds(result.ttft, 50),
        "first token, p99": _seconds(result.ttft, 99),
        "further token, median": _milliseconds(result.tpot, 50),
        "further token, p99": _milliseconds(result.tpot, 99),
        "whole answer, median": _seconds(result.e2e, 50),
        "whole answer, p99": _seconds(result.e2e, 99),
    }
    if result.within_slo is not None:
        share = result.within_slo
        row["within the goal"] = f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"
    return row | {
        "failed": failed or "none",
        "valid": "yes" if result.valid else f"no: {'; '.join(result.problems)}",
    }


def _seconds(found: Percentiles, percent: float) -> str:
    return _percentile(found, percent, 1.0, "s")


def _milliseconds(found: Percentiles, percent: float) -> str:
    return _percentile(found, percent, 1e3, "ms")


def _percentile(found: Percentiles, percent: float, factor: float, unit: str) -> str:
    point = next((point for point in found.points if point.percent == percent), None)
    if point is None or point.value is None:
        return "too few"
    value = f"{point.value * factor:.3g} {unit}"
    if point.low is None or point.high is None:
        return value
    return f"{value} [{point.low * factor:.3g}, {point.high * factor:.3g}]"


# -- machines


def machines(data: ReportData) -> list[Machine]:
    """Hardware, engine and versions; variants with the same ones together."""
    found: dict[tuple[Fact, ...], list[str]] = {}
    for subject in data.subjects:
        if subject.measurement is not None:
            facts = (*_engine_facts(subject.measurement), *_load_facts(subject))
            found.setdefault(facts, []).append(subject.label)
    return [Machine(tuple(labels), facts) for facts, labels in found.items()]


def _engine_facts(measured: Measurement) -> Iterator[Fact]:
    yield "engine", f"{measured.engine} (runtime {measured.runtime})"
    yield from measured.hardware.items()
    yield from measured.versions.items()


def _load_facts(subject: Subject) -> Iterator[Fact]:
    if subject.load and subject.load.results:
        yield from _environment_facts(subject.load.results[-1].environment)


def _environment_facts(environment: Environment) -> Iterator[Fact]:
    facts = environment.fingerprint | environment.engine | environment.client
    for key, value in facts.items():
        if key != "artifact":
            yield f"load test: {key}", value
    for gpu in environment.gpus:
        yield f"load test: GPU {gpu.index}", _gpu(gpu)


def _gpu(gpu: GpuState) -> str:
    throttle = ", ".join(f"{reason} {share:.0%}" for reason, share in gpu.throttle.items() if share)
    clock = f"{gpu.sm_clock_mhz.median:.0f} MHz, " if gpu.sm_clock_mhz else ""
    return f"{gpu.name}, {clock}throttled: {throttle or 'none'} (n = {gpu.samples} samples)"
