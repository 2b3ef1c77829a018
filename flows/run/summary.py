"""What a run of the main flow has led to, for whoever started it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from artifacts.manifest import ModelArtifact
from artifacts.records.evidence import Evidence, read_evidence
from artifacts.records.outcomes import VariantOutcome
from artifacts.records.report import Verdict
from configs.errors import VerdictFailed
from configs.location import Location
from tasks.capacity import CapacityResult
from tasks.deploy import DeployResult
from tasks.promote import PromoteResult
from tasks.report import ReportRequest, ReportResult

REMEDIES = {
    "FAIL": (
        "try other recipes (repair.changes, quantize.samples), or a margin that you can defend"
        " (evaluate.max_perplexity_ratio)"
    ),
    "INCONCLUSIVE": "give more held-out text (texts.held_out_documents, evaluate.max_documents)",
    "ANOMALOUS": "find out what is wrong with the measurement before you trust any figure of it",
}


class Summary(BaseModel):
    """What a run of the main flow has led to.

    Attributes:
        asked: the variants, the one that the verdict is about, the attempts and the choice.
        store: where it was uploaded to, if commands mean another store by themselves.
        reused: the steps whose earlier answer was taken.
    """

    model_config = ConfigDict(frozen=True)

    asked: ReportRequest
    judged: ReportResult
    needs: CapacityResult
    store: Location | None
    promoted: PromoteResult | None
    deployed: DeployResult | None
    reused: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.asked.name

    @property
    def parent(self) -> VariantOutcome:
        """The fp16 variant."""
        return self.asked.variants[0]

    @property
    def served(self) -> VariantOutcome:
        """The variant that the verdict is about."""
        return self.asked.outcome(self.asked.served)

    @property
    def verdict(self) -> Verdict:
        return self.judged.verdict

    @property
    def report(self) -> ModelArtifact:
        return self.judged.report

    def evidence(self) -> Evidence:
        """What the verdict rests on, read from its artifact."""
        assert self.served.evidence is not None
        return read_evidence(self.served.evidence)


def require_pass(summary: Summary) -> Summary:
    """The summary, if its verdict is PASS.

    Raises:
        VerdictFailed: it is not; everything is kept for inspection.
    """
    verdict = summary.verdict
    if verdict.outcome == "PASS":
        return summary
    error = VerdictFailed(
        "; ".join(verdict.reasons),
        where=f"verdict {verdict.outcome} for {summary.name}",
        hint=f"`lmflows report {summary.report.short}` shows it all; {REMEDIES[verdict.outcome]}",
    )
    error.summary = summary
    raise error
