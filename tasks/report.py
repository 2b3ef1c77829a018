"""The report step: the verdict and the run's story, as an artifact of its own that names what it speaks of."""

from __future__ import annotations

from typing import Any

import pydantic

from artifacts.evidence import Evidence, Verdict
from artifacts.manifest import ModelArtifact, Parent, canonical_json
from tasks.evaluate import read_evidence
from tasks.preflight import PreflightResult
from tasks.smoke_test import SmokeTestResult
from tasks.step import Context, Request, Result, step
from tasks.verdict import judge


class StepTime(pydantic.BaseModel):
    """A step's wall time in seconds and the most memory of its largest process in bytes."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: str
    seconds: float
    peak_rss_bytes: int


class ReportRequest(Request):
    """`steps` are the times of the steps that led here, as they were measured when each ran."""

    name: str
    parent: ModelArtifact
    candidate: ModelArtifact
    evidence: ModelArtifact
    max_perplexity_ratio: float
    model: PreflightResult
    smoke_test: SmokeTestResult
    parent_bytes: int
    candidate_bytes: int
    steps: tuple[StepTime, ...]


class ReportResult(Result):
    report: ModelArtifact
    verdict: Verdict


@step(child=False, cached=False)
def report(request: ReportRequest, context: Context) -> ReportResult:
    """Judge the candidate by the evidence, and write down the verdict and the run's story."""
    evidence = read_evidence(request.evidence)
    verdict = judge(evidence, request.evidence.digest, request.max_perplexity_ratio)
    context.log(f"{verdict.outcome}: {'; '.join(verdict.reasons)}")
    with context.store.stage() as staging:
        staging.write("verdict.json", canonical_json(verdict.model_dump(mode="json")))
        staging.write("report.md", markdown(request, evidence, verdict, context.store.manifest(request.candidate.digest).recipe).encode())
        artifact = context.store.commit(staging, "report", parents=[
            Parent(role="candidate", digest=request.candidate.digest), Parent(role="parent", digest=request.parent.digest),
            Parent(role="evidence", digest=request.evidence.digest)])
    return ReportResult(report=artifact, verdict=verdict)


def variant_rows(request: ReportRequest, evidence: Evidence) -> list[dict[str, str]]:
    """The table of variants: one row each, as text."""
    return [
        {"variant": "fp16", "size": mb(request.parent_bytes), "perplexity": f"{evidence.perplexity_parent:.3f}", "ratio": "1",
         "top-1 agreement": "", "mean KL (nats)": "", "digest": request.parent.short},
        {"variant": "w4a16", "size": mb(request.candidate_bytes), "perplexity": f"{evidence.perplexity_candidate:.3f}",
         "ratio": f"{evidence.perplexity_ratio:.4f}", "top-1 agreement": f"{evidence.top1_agreement:.1%}",
         "mean KL (nats)": f"{evidence.mean_kl:.4f}", "digest": request.candidate.short},
    ]


def markdown(request: ReportRequest, evidence: Evidence, verdict: Verdict, recipe: dict[str, Any]) -> str:
    """The run's story, for a person."""
    quoted = "\n".join(f"- {reason}" for reason in verdict.reasons)
    answers = "\n\n".join(f"**{sample.prompt}**\n\n- fp16: {one_line(sample.parent)}\n- w4a16: {one_line(sample.candidate)}"
                          for sample in evidence.samples)
    settings = ", ".join(f"{key} {value}" for key, value in sorted(recipe.items()) if not isinstance(value, dict))
    versions = ", ".join(f"{name} {version}" for name, version in recipe.get("versions", {}).items())
    times = table([{"step": item.name, "seconds": f"{item.seconds:.1f}", "peak memory": mb(item.peak_rss_bytes) if item.peak_rss_bytes else ""}
                   for item in request.steps])
    return f"""\
# {request.name}: {verdict.outcome}

{quoted}

{table(variant_rows(request, evidence))}

Measured with {evidence.engine} ({evidence.dtype}) on {evidence.tokens} tokens of {len(evidence.documents)} held-out documents that share
no passage with the calibration text.

## Answers

{answers}

## Recipe

{request.model.architecture}, {request.model.parameters / 1e6:.0f} million parameters. {settings}. Versions: {versions}.

The fp16 smoke test took {request.smoke_test.load_seconds:.1f} s to load, generated {request.smoke_test.tokens_per_second:.1f} tokens/s and
took {mb(request.smoke_test.peak_rss_bytes)} of memory at most.

## Steps

{times}

## Lineage

- candidate `{request.candidate.digest}`
- parent `{request.parent.digest}`
- evidence `{request.evidence.digest}`
"""


def table(rows: list[dict[str, str]]) -> str:
    """A markdown table."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row[head] for head in heads) + " |" for row in rows)])


def one_line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"


def mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
