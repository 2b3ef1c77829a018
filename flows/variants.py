"""The variants of a run: each measured through its engine; one whose engine refuses or crashes says why, and the rest go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from artifacts.manifest import ModelArtifact
from configs.errors import LmflowsError
from configs.schema import Pipeline, Variant, weights_and_kv
from flows.steps import Done, Run
from tasks.evaluate import EvaluateRequest, evaluate
from tasks.measure import MeasureRequest, measure
from tasks.preflight import refused
from tasks.report import VariantOutcome


@dataclass(frozen=True)
class Measured:
    """A variant and what became of it."""

    variant: Variant
    model: ModelArtifact
    measurement: ModelArtifact | None = None
    evidence: ModelArtifact | None = None
    problem: str | None = None

    def outcome(self, model_bytes: int) -> VariantOutcome:
        return VariantOutcome(variant=self.variant, model=self.model, model_bytes=model_bytes, measurement=self.measurement,
                              evidence=self.evidence, problem=self.problem)


def measure_variants(run: Run, pipeline: Pipeline, yardstick: MeasureRequest, candidate: ModelArtifact, head_dim: int, gpu_bytes: int,
                     done: list[Done[Any]]) -> list[Measured]:
    """Measure every variant of the pipeline, the yardstick (fp16) first.

    Args:
        yardstick: the request of the fp16 variant; the others are asked the same of their own model.
        candidate: the quantized model.
        done: finished steps are added to it.

    Raises:
        LmflowsError: the yardstick, or the variant that shall be served, cannot be measured.
    """
    def perform(variant: Variant, request: MeasureRequest) -> ModelArtifact:
        finished = run.perform(measure, request, label=variant, timeout_minutes=pipeline.evaluate.timeout_minutes, gpu_bytes=gpu_bytes)
        done.append(finished)
        return finished.result.measurement

    first = perform("fp16", yardstick)
    outcomes = [Measured("fp16", yardstick.model, measurement=first)]
    for variant in pipeline.variants[1:]:
        model = yardstick.model if weights_and_kv(variant)[0] == "fp16" else candidate
        problem = refused(variant, pipeline.engine, head_dim)
        if problem is None:
            try:
                measurement = perform(variant, yardstick.model_copy(update={"variant": variant, "model": model, "yardstick": first}))
                compared = run.perform(evaluate, EvaluateRequest(parent=first, candidate=measurement), label=variant)
                done.append(compared)
                outcomes.append(Measured(variant, model, measurement=measurement, evidence=compared.result.evidence))
                continue
            except LmflowsError as error:
                if variant == pipeline.served_variant:
                    raise
                problem = error.message
        outcomes.append(Measured(variant, model, problem=problem))
    return outcomes
