"""Repair: recipe after recipe until a candidate is as good as its parent. Each attempt is an
artifact with evidence of its own."""

from __future__ import annotations

from dataclasses import dataclass

from artifacts.manifest import ModelArtifact
from artifacts.records.outcomes import Attempt, VariantOutcome
from artifacts.records.report import Verdict
from configs.errors import SourceError
from configs.quantization import Quantize
from configs.schema import Pipeline
from flows.evaluation import Candidate, Evaluation
from flows.run.display import note
from flows.run.run import Run
from tasks.keep_layers import KeepLayersRequest, keep_layers
from tasks.quantize import QuantizeRequest, quantize
from tasks.repack import RepackRequest, repack

# a measurement that cannot be right is not mended by another recipe
TRY_ANOTHER = ("FAIL", "INCONCLUSIVE")


@dataclass(frozen=True)
class Recipes:
    """From a recipe to a candidate: what all recipes of a run have in common."""

    model: ModelArtifact
    texts: ModelArtifact

    def request(self, recipe: Quantize) -> QuantizeRequest:
        """What the quantize step is asked: layers in fp16 and other formats are made from a plain
        AWQ model, which recipes share."""
        return QuantizeRequest(
            model=self.model,
            texts=self.texts,
            config=recipe.model_copy(update={"format": "awq", "keep_layers": 0}),
        )

    def make(self, run: Run, recipe: Quantize, attempt: str) -> Candidate:
        """The candidate of a recipe.

        Raises:
            LmflowsError: it cannot be made.
        """
        quantized = run(quantize, self.request(recipe), label=attempt)
        model, size = quantized.candidate, quantized.candidate_bytes
        if recipe.keep_layers:
            request = KeepLayersRequest(
                parent=self.model,
                quantized=model,
                texts=self.texts,
                config=recipe,
            )
            kept = run(keep_layers, request, label=attempt)
            model, size = kept.candidate, kept.candidate_bytes
        if recipe.format == "compressed-tensors":
            repacked = run(
                repack, RepackRequest(model=model, group_size=recipe.group_size), label=attempt
            )
            model, size = repacked.candidate, repacked.candidate_bytes
        return Candidate(model, size, attempt)


@dataclass(frozen=True)
class JudgedCandidate:
    """One attempt, measured and judged; `change` is what its recipe changes, in words."""

    change: str
    candidate: Candidate
    served: VariantOutcome

    @property
    def verdict(self) -> Verdict:
        assert self.served.verdict is not None
        return self.served.verdict

    def attempt(self) -> Attempt:
        """What the report says of it."""
        assert self.served.evidence is not None
        return Attempt(
            change=self.change,
            candidate=self.candidate.model,
            model_bytes=self.candidate.model_bytes,
            evidence=self.served.evidence,
        )


@dataclass(frozen=True)
class RepairResult:
    """The candidate that a run goes on with, and all attempts that were made.

    Attributes:
        served: what became of the variant that is served.
    """

    candidate: Candidate
    served: VariantOutcome
    attempts: tuple[Attempt, ...]


def repair(run: Run, pipeline: Pipeline, evaluation: Evaluation, recipes: Recipes) -> RepairResult:
    """Try the pipeline's recipes until one passes, or all of them if asked to.

    Of those that pass the smallest is taken, of equal ones the earlier; if none passes, the one
    with the least loss.

    Raises:
        LmflowsError: the first candidate cannot be made or measured.
    """
    judged: list[JudgedCandidate] = []
    before: Quantize | None = None
    most = pipeline.recipes[-1].samples
    for number, planned in enumerate(pipeline.recipes, 1):
        recipe = planned.model_copy(update={"samples": min(planned.samples, most)})
        if recipe == before:
            continue
        change = describe(before, recipe)
        if judged:
            verdict = judged[-1].verdict
            note(f"{verdict.outcome}: {verdict.reasons[0]}; attempt {number}: {change}")
        try:
            candidate = recipes.make(run, recipe, f"attempt {number}" if number > 1 else "")
        except SourceError as error:
            if before is None:
                raise
            note(f"attempt {number} cannot be made: {error.message}")
            most = before.samples  # there may be too little text for more
            continue
        before = recipe
        served = evaluation.judge(pipeline.served_variant, candidate)
        judged.append(JudgedCandidate(change, candidate, served))
        if judged[-1].verdict.outcome not in TRY_ANOTHER and not pipeline.repair.try_all:
            break
    taken = best(judged)
    attempts = tuple(item.attempt() for item in judged)
    return RepairResult(taken.candidate, taken.served, attempts)


def best(judged: list[JudgedCandidate]) -> JudgedCandidate:
    """The smallest that passed; if none did, the one with the least loss."""
    passed = [item for item in judged if item.verdict.outcome == "PASS"]
    if passed:
        return min(passed, key=lambda item: item.candidate.model_bytes)
    return min(judged, key=_loss)


def _loss(item: JudgedCandidate) -> float:
    difference = item.verdict.difference
    return difference.mean if difference else float("inf")


def describe(before: Quantize | None, recipe: Quantize) -> str:
    """What a recipe changes, in words."""
    if before is None:
        return "scale search" if recipe.search_scale else "fixed ratio"
    words = []
    if recipe.search_scale and not before.search_scale:
        words.append("scale search")
    if recipe.samples != before.samples:
        words.append(f"{recipe.samples} calibration samples")
    if recipe.keep_layers != before.keep_layers:
        words.append(f"the {recipe.keep_layers} most damaged layers in fp16")
    return ", ".join(words)
