"""The variants of a run: each measured and judged beside one baseline; one whose engine refuses or
crashes says why, and the rest go on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from artifacts.manifest import ModelArtifact
from artifacts.records.evidence import read_evidence
from artifacts.records.report import Verdict
from configs.errors import LmflowsError
from configs.evaluation import Evaluate
from configs.schema import Pipeline
from configs.variants import Variant, weights_and_kv
from flows.run.run import Done, Run
from tasks.evaluate import EvaluateRequest, evaluate
from tasks.load_test import LoadTestRequest, load_test
from tasks.measure import ItemsFile, MeasureRequest, hardware, measure
from tasks.preflight import refused
from tasks.quality.verdict import judge, wants_more
from tasks.report import Attempt, VariantOutcome


def baseline_request(
    run: Run,
    pipeline: Pipeline,
    model: ModelArtifact,
    texts: ModelArtifact,
    items: tuple[ItemsFile, ...],
    *,
    variant: Variant = "fp16",
    trust_remote_code: bool,
) -> MeasureRequest:
    """What the baseline is asked first, by the pipeline's own words."""
    return MeasureRequest(
        variant=variant,
        model=model,
        texts=texts,
        engine=pipeline.engine,
        config=pipeline.evaluate,
        benchmark=pipeline.benchmark,
        part=(0, pipeline.evaluate.documents),
        items=items,
        baseline=None,
        hardware=hardware(run.gpus),
        trust_remote_code=trust_remote_code,
    )


@dataclass(frozen=True)
class Ladder:
    """The attempt of the repair ladder that a run goes on with, and all that were made.

    Attributes:
        attempt: its label among the run's steps; empty for the first.
        served: what became of the variant that is served.
    """

    attempt: str
    candidate: ModelArtifact
    candidate_bytes: int
    served: VariantOutcome
    attempts: tuple[Attempt, ...]


class Evaluation:
    """Every model of a run is asked the same as the baseline, the fp16 model of a pipeline.

    Args:
        request: what the baseline is asked first.
        config: how everything is judged.
        done: finished steps are added to it.
    """

    def __init__(
        self,
        run: Run,
        pipeline: Pipeline,
        request: MeasureRequest,
        config: Evaluate,
        gpu_bytes: int,
        done: list[Done[Any]],
    ) -> None:
        self._run, self._pipeline, self._request, self._config = run, pipeline, request, config
        self._gpu_bytes, self._done = gpu_bytes, done
        self._parts = list(pairwise((0, *config.looks)))
        self._baselines: list[ModelArtifact] = []

    def baseline(self, look: int) -> ModelArtifact:
        """The baseline's measurement of the documents that this look adds, measured on first use.

        Raises:
            LmflowsError: it cannot be measured.
        """
        while len(self._baselines) <= look:
            part = self._parts[len(self._baselines)]
            self._baselines.append(
                self._measure(self._request.model_copy(update={"part": part}), "")
            )
        return self._baselines[look]

    def parent(self) -> VariantOutcome:
        """The baseline as a variant, compared with itself."""
        first, variant, model = self.baseline(0), self._request.variant, self._request.model
        evidence = self._evaluate(variant, [first], [first])
        return VariantOutcome(
            variant=variant,
            model=model,
            model_bytes=self._run.store.manifest(model.digest).size,
            measurement=first,
            evidence=evidence,
        )

    def candidate(
        self, variant: Variant, model: ModelArtifact, model_bytes: int, attempt: str = ""
    ) -> tuple[VariantOutcome, Verdict]:
        """Measure a variant, on more documents for as long as the verdict is open and the budget
        has some.

        Raises:
            LmflowsError: it cannot be measured.
        """
        measured: list[ModelArtifact] = []
        while True:
            look = len(measured)
            asked = {
                "variant": variant,
                "model": model,
                "baseline": self.baseline(look),
                "part": self._parts[look],
            }
            measured.append(self._measure(self._request.model_copy(update=asked), attempt))
            evidence = self._evaluate(
                f"{variant} {attempt}".strip(), self._baselines[: look + 1], measured
            )
            found = read_evidence(evidence)
            verdict = judge(found, evidence.digest, self._config)
            if not wants_more(found, verdict, self._config):
                return (
                    VariantOutcome(
                        variant=variant,
                        model=model,
                        model_bytes=model_bytes,
                        measurement=measured[0],
                        evidence=evidence,
                    ),
                    verdict,
                )

    def others(self, ladder: Ladder, parent: VariantOutcome, head_dim: int) -> list[VariantOutcome]:
        """Every variant of the pipeline in its order, the fp16 one and the served one as they are
        known already."""
        return [
            parent,
            *(
                (
                    ladder.served
                    if variant == ladder.served.variant
                    else self._other(variant, ladder, parent, head_dim)
                )
                for variant in self._pipeline.variants[1:]
            ),
        ]

    def _other(
        self, variant: Variant, ladder: Ladder, parent: VariantOutcome, head_dim: int
    ) -> VariantOutcome:
        quantized = weights_and_kv(variant)[0] == "w4a16"
        model, size = (
            (ladder.candidate, ladder.candidate_bytes)
            if quantized
            else (parent.model, parent.model_bytes)
        )
        problem = refused(variant, self._pipeline.engine, head_dim)
        if problem is None:
            try:
                return self.candidate(variant, model, size, ladder.attempt if quantized else "")[0]
            except LmflowsError as error:
                problem = error.message
        return VariantOutcome(variant=variant, model=model, model_bytes=size, problem=problem)

    def load_tests(self, outcomes: list[VariantOutcome]) -> list[VariantOutcome]:
        """Put every measured variant under load behind a server of its own, if the pipeline says
        how; one whose server fails has no figures."""
        config = self._pipeline.load
        if config is None:
            return outcomes
        tested = []
        for item in outcomes:
            if item.measurement is not None:
                request = LoadTestRequest(
                    variant=item.variant,
                    model=item.model,
                    engine=self._request.engine,
                    config=config,
                    hardware=self._request.hardware,
                    trust_remote_code=self._request.trust_remote_code,
                )
                try:
                    finished = self._run.perform(
                        load_test,
                        request,
                        label=item.variant,
                        timeout_minutes=config.timeout_minutes,
                        gpu_bytes=self._gpu_bytes,
                    )
                    self._done.append(finished)
                    item = item.model_copy(update={"load": finished.result.measurement})
                except LmflowsError as error:
                    item = item.model_copy(update={"problem": f"no load test: {error.message}"})
            tested.append(item)
        return tested

    def _measure(self, request: MeasureRequest, attempt: str) -> ModelArtifact:
        first, last = request.part
        more = f"documents {first + 1}-{last}" if first else ""
        finished = self._run.perform(
            measure,
            request,
            label=" ".join(filter(None, (request.variant, attempt, more))),
            timeout_minutes=self._pipeline.evaluate.timeout_minutes,
            gpu_bytes=self._gpu_bytes,
        )
        self._done.append(finished)
        return finished.result.measurement

    def _evaluate(
        self, label: str, parents: list[ModelArtifact], candidates: list[ModelArtifact]
    ) -> ModelArtifact:
        request = EvaluateRequest(
            parents=tuple(parents), candidates=tuple(candidates), texts=self._request.texts
        )
        finished = self._run.perform(
            evaluate, request, label=f"{label} look {len(parents)}" if len(parents) > 1 else label
        )
        self._done.append(finished)
        return finished.result.evidence
