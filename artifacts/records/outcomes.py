"""What a run knows when everything is measured: of each variant, of each attempt at a candidate, of
the choice among the variants, and of the time that its steps took.

Names artifacts and judges nothing; `tasks.report` makes a report of it.
"""

from __future__ import annotations

from artifacts.manifest import ModelArtifact
from artifacts.records.model import ModelSummary, SmokeTestRecord
from artifacts.records.record import Record
from artifacts.records.report import Verdict
from configs.evaluation import Evaluate
from configs.variants import Variant


class StepTime(Record):
    """A step's wall time in seconds, the most host memory of its largest process, and the most GPU
    memory (NVML) above what was in use when it started, both in bytes; None without a GPU."""

    name: str
    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int | None


class VariantOutcome(Record):
    """What became of one variant: measured, or the reason why not. The evidence of fp16 compares it
    with itself.

    Attributes:
        verdict: on this evidence, by the pipeline's margin.
        load: its load test, if the pipeline has one.
    """

    variant: Variant
    model: ModelArtifact
    model_bytes: int
    measurement: ModelArtifact | None = None
    evidence: ModelArtifact | None = None
    verdict: Verdict | None = None
    load: ModelArtifact | None = None
    problem: str | None = None


class Attempt(Record):
    """One attempt at a candidate: what was changed in the recipe (nothing in the first attempt),
    and what came of it."""

    change: str
    candidate: ModelArtifact
    model_bytes: int
    evidence: ModelArtifact


class Choice(Record):
    """Why this variant is served: the objective, and every eligible variant's figure by it, best
    first."""

    objective: str
    unit: str
    figures: tuple[tuple[Variant, float], ...]
    why: str

    @property
    def variant(self) -> Variant:
        """The variant that was chosen."""
        return self.figures[0][0]


class RunOutcome(Record):
    """What a run has found, or a comparison of two artifacts, which has no model check, no smoke
    test and no attempts.

    Attributes:
        served: the variant that the verdict is about.
        config: how the variants are judged.
        attempts: every recipe that was tried, the one whose candidate is served among them.
        steps: the times of the steps that led here, as they were measured when each ran.
    """

    name: str
    served: Variant
    variants: tuple[VariantOutcome, ...]
    config: Evaluate
    attempts: tuple[Attempt, ...] = ()
    choice: Choice | None = None
    model: ModelSummary | None = None
    smoke_test: SmokeTestRecord | None = None
    steps: tuple[StepTime, ...] = ()

    def outcome(self, variant: Variant) -> VariantOutcome:
        """What became of that variant."""
        return next(outcome for outcome in self.variants if outcome.variant == variant)
