"""The report step: the verdict and the run's story, as an artifact of its own that names what it speaks of."""

from __future__ import annotations

from typing import Any

import pydantic

from artifacts.evidence import Evidence, Measurement, Speed, Verdict
from artifacts.manifest import ModelArtifact, Parent, canonical_json
from configs.schema import Variant
from tasks.evaluate import read_evidence
from tasks.measure import read_measurement
from tasks.preflight import PreflightResult
from tasks.smoke_test import SmokeTestResult
from tasks.step import Context, Request, Result, step
from tasks.verdict import judge

COLUMNS = ("variant", "verdict", "size", "perplexity", "ratio", "top-1", "mean KL", "load", "GPU memory", "prefill tokens/s", "decode tokens/s")


class StepTime(pydantic.BaseModel):
    """A step's wall time in seconds, the most host memory of its largest process, and the most GPU memory (NVML) above what
    was in use when it started, both in bytes; None without a GPU."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: str
    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int | None


class VariantOutcome(pydantic.BaseModel):
    """What became of one variant: measured (fp16 has no evidence, it is the yardstick), or the reason why not."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    variant: Variant
    model: ModelArtifact
    model_bytes: int
    measurement: ModelArtifact | None = None
    evidence: ModelArtifact | None = None
    problem: str | None = None


class ReportRequest(Request):
    """`steps` are the times of the steps that led here, as they were measured when each ran."""

    name: str
    served: Variant
    variants: tuple[VariantOutcome, ...]
    max_perplexity_ratio: float
    model: PreflightResult
    smoke_test: SmokeTestResult
    steps: tuple[StepTime, ...]

    def outcome(self, variant: Variant) -> VariantOutcome:
        return next(item for item in self.variants if item.variant == variant)


class ReportResult(Result):
    """`variants` is the table of variants: one row each, as text."""

    report: ModelArtifact
    verdict: Verdict
    variants: tuple[dict[str, str], ...]
    text: str


@step(child=False, cached=False)
def report(request: ReportRequest, context: Context) -> ReportResult:
    """Judge the candidate by the evidence, and write down the verdict and the run's story."""
    served = request.outcome(request.served)
    assert served.evidence is not None
    evidence = read_evidence(served.evidence)
    verdict = judge(evidence, served.evidence.digest, request.max_perplexity_ratio)
    context.log(f"{verdict.outcome}: {'; '.join(verdict.reasons)}")
    rows = variant_rows(request)
    text = markdown(request, evidence, verdict, rows, context.store.manifest(served.model.digest).recipe)
    with context.store.stage() as staging:
        staging.write("verdict.json", canonical_json(verdict.model_dump(mode="json")))
        staging.write("variants.json", canonical_json(rows))
        staging.write("report.md", text.encode())
        artifact = context.store.commit(staging, "report", parents=[
            Parent(role="candidate", digest=served.model.digest), Parent(role="parent", digest=request.outcome("fp16").model.digest),
            Parent(role="evidence", digest=served.evidence.digest)])
    return ReportResult(report=artifact, verdict=verdict, variants=tuple(rows), text=text)


def variant_rows(request: ReportRequest) -> list[dict[str, str]]:
    """The table of variants. Each is judged like the served one; tokens/s are medians over the rounds, by batch size."""
    rows = []
    for item in request.variants:
        row = {"variant": item.variant, "verdict": "", "size": mb(item.model_bytes), "perplexity": "", "ratio": "", "top-1": "", "mean KL": ""}
        measured = read_measurement(item.measurement) if item.measurement else None
        if item.evidence is not None:
            evidence = read_evidence(item.evidence)
            row |= {"verdict": judge(evidence, item.evidence.digest, request.max_perplexity_ratio).outcome,
                    "perplexity": f"{evidence.perplexity_candidate:.3f}", "ratio": f"{evidence.perplexity_ratio:.4f}",
                    "top-1": f"{evidence.top1_agreement:.1%}", "mean KL": f"{evidence.mean_kl:.4f}"}
        elif item.problem:
            row["verdict"] = one_line(item.problem.split(";")[0])
        else:
            row |= {"verdict": "yardstick", "perplexity": _perplexity_of_parent(request), "ratio": "1"}
        rows.append(row | _performance(measured))
    return in_order(rows)


def in_order(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Every row with the same columns, in the order of COLUMNS; one that no row has is left out."""
    there = {column for row in rows for column in row}
    return [{column: row.get(column, "") for column in COLUMNS if column in there} for row in rows]


def _performance(measured: Measurement | None) -> dict[str, str]:
    if measured is None:
        return {}
    row = {"load": f"{measured.load_seconds:.1f} s"}
    if measured.gpu_bytes is not None:
        row["GPU memory"] = mb(measured.gpu_bytes)
    if measured.speeds:
        row["prefill tokens/s"] = _by_batch(measured.speeds, "prefill_median")
        row["decode tokens/s"] = _by_batch(measured.speeds, "decode_median")
    return row


def _by_batch(speeds: tuple[Speed, ...], figure: str) -> str:
    return ", ".join(f"{getattr(speed, figure):.0f} (batch {speed.batch_size})" for speed in speeds)


def _perplexity_of_parent(request: ReportRequest) -> str:
    evidence = next(item.evidence for item in request.variants if item.evidence is not None)
    return f"{read_evidence(evidence).perplexity_parent:.3f}"


def markdown(request: ReportRequest, evidence: Evidence, verdict: Verdict, rows: list[dict[str, str]], recipe: dict[str, Any]) -> str:
    """The run's story, for a person."""
    quoted = "\n".join(f"- {reason}" for reason in verdict.reasons)
    answers = "\n\n".join(f"**{sample.prompt}**\n\n- fp16: {one_line(sample.parent)}\n- {evidence.variant}: {one_line(sample.candidate)}"
                          for sample in evidence.samples)
    settings = ", ".join(f"{key} {value}" for key, value in sorted(recipe.items()) if not isinstance(value, dict))
    versions = ", ".join(f"{name} {version}" for name, version in recipe.get("versions", {}).items())
    measurement = request.outcome(request.served).measurement
    hardware = ", ".join(f"{key} {value}" for key, value in read_measurement(measurement).hardware.items()) if measurement else ""
    engine = ", ".join(f"{name} {version}" for name, version in evidence.versions.items())
    return f"""\
# {request.name}: {verdict.outcome}

{quoted}

{table(rows)}

{problems(request)}Measured through {evidence.engine} (runtime {evidence.runtime}; {engine})
on {evidence.tokens} tokens of {len(evidence.documents)} held-out documents that share no passage with the calibration text. {hardware}.

## Answers

{answers}

## Recipe

{request.model.architecture}, {request.model.parameters / 1e6:.0f} million parameters. {settings}. Versions: {versions}.

The fp16 smoke test took {request.smoke_test.load_seconds:.1f} s to load, generated {request.smoke_test.tokens_per_second:.1f} tokens/s and
took {mb(request.smoke_test.peak_rss_bytes)} of memory at most.

## Steps

{table(step_rows(request))}

## Lineage

- candidate `{evidence.candidate}`
- parent `{evidence.parent}`
- evidence `{verdict.evidence}`
"""


def problems(request: ReportRequest) -> str:
    """Why a variant has no figures, in full; empty if all have some."""
    found = [f"**{item.variant}**: {item.problem}\n\n" for item in request.variants if item.problem]
    return "".join(found)


def step_rows(request: ReportRequest) -> list[dict[str, str]]:
    """The table of steps; without a GPU it has no column for one."""
    gpu = any(item.peak_gpu_bytes is not None for item in request.steps)
    return [{"step": item.name, "seconds": f"{item.seconds:.1f}", "peak memory": mb(item.peak_rss_bytes) if item.peak_rss_bytes else "",
             **({"peak GPU memory": mb(item.peak_gpu_bytes) if item.peak_gpu_bytes is not None else ""} if gpu else {})} for item in request.steps]


def table(rows: list[dict[str, str]]) -> str:
    """A markdown table."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row[head] for head in heads) + " |" for row in rows)])


def one_line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"


def mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
