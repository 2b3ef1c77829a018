"""The report step: the verdict and the run's story, as an artifact of its own that names what it
speaks of."""

from __future__ import annotations

import pydantic

from artifacts.manifest import ModelArtifact, Parent, canonical_json
from artifacts.records.report import MARKDOWN, PAGE, VARIANTS, VERDICT, Verdict
from configs.evaluation import Evaluate
from configs.variants import Variant
from tasks.preflight import PreflightResult
from tasks.reporting.markdown import markdown, variant_rows
from tasks.runner.step import Context, Request, Result, step, versions
from tasks.smoke_test import SmokeTestResult


class StepTime(pydantic.BaseModel):
    """A step's wall time in seconds, the most host memory of its largest process, and the most GPU
    memory (NVML) above what was in use when it started, both in bytes; None without a GPU."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: str
    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int | None


class VariantOutcome(pydantic.BaseModel):
    """What became of one variant: measured, or the reason why not. The evidence of fp16 compares it
    with itself.

    Attributes:
        load: its load test, if the pipeline has one.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    variant: Variant
    model: ModelArtifact
    model_bytes: int
    measurement: ModelArtifact | None = None
    evidence: ModelArtifact | None = None
    load: ModelArtifact | None = None
    problem: str | None = None


class Attempt(pydantic.BaseModel):
    """One rung of the repair ladder: what was changed in the recipe (nothing in the first attempt),
    and what came of it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    change: str
    candidate: ModelArtifact
    model_bytes: int
    evidence: ModelArtifact


class Choice(pydantic.BaseModel):
    """Why this variant is served: the objective, and every eligible variant's figure by it, best
    first."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    objective: str
    unit: str
    figures: tuple[tuple[Variant, float], ...]
    why: str

    @property
    def variant(self) -> Variant:
        """The variant that was chosen."""
        return self.figures[0][0]


class ReportRequest(Request):
    """A run's story, or that of a comparison of two artifacts, which has no model check, no smoke
    test and no attempts.

    Attributes:
        served: the variant that the verdict is about.
        attempts: every rung of the repair ladder that was tried, the one whose candidate is served
            among them.
        steps: the times of the steps that led here, as they were measured when each ran.
    """

    name: str
    served: Variant
    variants: tuple[VariantOutcome, ...]
    config: Evaluate
    attempts: tuple[Attempt, ...] = ()
    choice: Choice | None = None
    model: PreflightResult | None = None
    smoke_test: SmokeTestResult | None = None
    steps: tuple[StepTime, ...] = ()

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
    # it loads what draws and what judges, which the command line has no use for
    from tasks.reporting import page

    story = page.collect(request, context.store)
    verdict, rows = story.verdict, variant_rows(story)
    context.log(f"{verdict.outcome}: {'; '.join(verdict.reasons)}")
    text = markdown(story, page.headline(story), page.explanation(story))
    with context.store.staging() as staging:
        staging.write(VERDICT, canonical_json(verdict.model_dump(mode="json")))
        staging.write(VARIANTS, canonical_json(rows))
        staging.write(MARKDOWN, text.encode())
        staging.write(PAGE, page.render(story).encode())
        artifact = context.store.commit(
            staging,
            "report",
            recipe={"versions": versions(("scipy", "matplotlib", "jinja2"))},
            parents=[
                Parent(role="candidate", digest=verdict.candidate),
                Parent(role="parent", digest=story.evidence.parent),
                Parent(role="evidence", digest=verdict.evidence),
            ],
        )
    return ReportResult(report=artifact, verdict=verdict, variants=tuple(rows), text=text)
