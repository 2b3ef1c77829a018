"""The repair ladder: recipe after recipe until a candidate is as good as its parent, each attempt
an artifact with its own evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefect import get_run_logger

from artifacts.manifest import ModelArtifact
from artifacts.records.report import Verdict
from configs.errors import SourceError
from configs.quantization import Quantize
from configs.schema import Pipeline
from flows.evaluation import Evaluation, Ladder
from flows.run.run import DISPLAY, Done, NoDisplay, Run
from tasks.keep_layers import KeepLayersRequest, keep_layers
from tasks.quantize import QuantizeRequest, quantize
from tasks.repack import RepackRequest, repack
from tasks.report import Attempt, VariantOutcome

# a measurement that cannot be right is not mended by another recipe
TRY_ANOTHER = ("FAIL", "INCONCLUSIVE")


@dataclass(frozen=True)
class Recipes:
    """From a recipe to a candidate: what all recipes of a run have in common."""

    model: ModelArtifact
    texts: ModelArtifact
    trust_remote_code: bool

    def request(self, recipe: Quantize) -> QuantizeRequest:
        """What the quantize step is asked: layers in fp16 and other formats are made from a plain
        AWQ model, which recipes share."""
        plain = recipe.model_copy(update={"format": "awq", "keep_layers": 0})
        return QuantizeRequest(
            model=self.model,
            texts=self.texts,
            config=plain,
            trust_remote_code=self.trust_remote_code,
        )

    def make(
        self, run: Run, recipe: Quantize, label: str, gpu_bytes: int, done: list[Done[Any]]
    ) -> tuple[ModelArtifact, int]:
        """The candidate of a recipe, and its size in bytes.

        Raises:
            LmflowsError: it cannot be made.
        """
        quantized = run.perform(
            quantize,
            self.request(recipe),
            label=label,
            timeout_minutes=recipe.timeout_minutes,
            gpu_bytes=gpu_bytes,
        )
        done.append(quantized)
        candidate, size = quantized.result.candidate, quantized.result.candidate_bytes
        if recipe.keep_layers:
            kept = run.perform(
                keep_layers,
                KeepLayersRequest(
                    parent=self.model,
                    quantized=candidate,
                    texts=self.texts,
                    config=recipe,
                    trust_remote_code=self.trust_remote_code,
                ),
                label=label,
                timeout_minutes=recipe.timeout_minutes,
            )
            done.append(kept)
            candidate, size = kept.result.candidate, kept.result.candidate_bytes
        if recipe.format == "compressed-tensors":
            repacked = run.perform(
                repack, RepackRequest(model=candidate, group_size=recipe.group_size), label=label
            )
            done.append(repacked)
            candidate, size = repacked.result.candidate, repacked.result.candidate_bytes
        return candidate, size


@dataclass(frozen=True)
class Rung:
    """One attempt, measured and judged."""

    attempt: str
    candidate: ModelArtifact
    candidate_bytes: int
    served: VariantOutcome
    verdict: Verdict
    change: str

    def told(self) -> Attempt:
        assert self.served.evidence is not None
        return Attempt(
            change=self.change,
            candidate=self.candidate,
            model_bytes=self.candidate_bytes,
            evidence=self.served.evidence,
        )


def climb(
    run: Run,
    pipeline: Pipeline,
    evaluation: Evaluation,
    recipes: Recipes,
    gpu_bytes: int,
    done: list[Done[Any]],
) -> Ladder:
    """Try the pipeline's recipes until one passes, or all of them if asked to.

    Of those that pass the smallest is taken, of equal ones the earlier; if none passes, the one
    with the least loss.

    Raises:
        LmflowsError: the first candidate cannot be made or measured.
    """
    rungs: list[Rung] = []
    before: Quantize | None = None
    most = pipeline.recipes[-1].samples
    for number, planned in enumerate(pipeline.recipes, 1):
        recipe = planned.model_copy(update={"samples": min(planned.samples, most)})
        if recipe == before:
            continue
        label = f"attempt {number}" if number > 1 else ""
        change = describe(before, recipe)
        if rungs:
            say(
                f"{rungs[-1].verdict.outcome}: {rungs[-1].verdict.reasons[0]}; attempt {number}:"
                f" {change}"
            )
        try:
            candidate, size = recipes.make(run, recipe, label, gpu_bytes, done)
        except SourceError as error:
            if before is None:
                raise
            say(f"attempt {number} cannot be made: {error.message}")
            most = before.samples  # there may be too little text for more
            continue
        before = recipe
        served, verdict = evaluation.candidate(pipeline.served_variant, candidate, size, label)
        rungs.append(Rung(label, candidate, size, served, verdict, change))
        if verdict.outcome not in TRY_ANOTHER and not pipeline.repair.try_all:
            break
    taken = best(rungs)
    return Ladder(
        taken.attempt,
        taken.candidate,
        taken.candidate_bytes,
        taken.served,
        tuple(rung.told() for rung in rungs),
    )


def best(rungs: list[Rung]) -> Rung:
    """The smallest that passed; if none did, the one with the least loss."""
    passed = [rung for rung in rungs if rung.verdict.outcome == "PASS"]
    if passed:
        return min(passed, key=lambda rung: rung.candidate_bytes)
    return min(
        rungs,
        key=lambda rung: rung.verdict.difference.mean if rung.verdict.difference else float("inf"),
    )


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


def say(text: str) -> None:
    """To Prefect's log and to the terminal."""
    get_run_logger().info(text)
    (DISPLAY.get() or NoDisplay()).note(text)
