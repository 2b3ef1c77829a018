"""The evaluation of a run: each variant measured and judged beside one baseline. A variant whose
engine refuses it or crashes says why, and the rest go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from artifacts.manifest import ModelArtifact
from artifacts.records.evidence import read_evidence
from artifacts.records.outcomes import VariantOutcome
from configs.errors import LmflowsError
from configs.evaluation import Evaluate
from configs.schema import Pipeline
from configs.variants import Variant, weights_and_kv
from flows.run.run import Run
from tasks.engines import module_of
from tasks.evaluate import EvaluateRequest, evaluate
from tasks.load_test import LoadTestRequest, load_test
from tasks.measure import ItemsFile, MeasureRequest, hardware, measure
from tasks.quality.verdict import judge, wants_more


@dataclass(frozen=True)
class Baseline:
    """What candidates are compared with: a pipeline's fp16 parent, or any other model.

    Attributes:
        texts: calibration and held-out documents.
        items: files of task items.
    """

    model: ModelArtifact
    texts: ModelArtifact
    items: tuple[ItemsFile, ...]
    variant: Variant = "fp16"

    def request(self, run: Run, pipeline: Pipeline) -> MeasureRequest:
        """What it is asked first, by the pipeline's own words."""
        return MeasureRequest(
            variant=self.variant,
            model=self.model,
            texts=self.texts,
            engine=pipeline.engine,
            config=pipeline.evaluate,
            benchmark=pipeline.benchmark,
            part=(0, pipeline.evaluate.documents),
            items=self.items,
            baseline=None,
            hardware=hardware(run.gpus),
        )


@dataclass(frozen=True)
class Candidate:
    """A model that is measured beside the baseline.

    Attributes:
        model_bytes: its size on disk.
        label: tells its steps apart from those of the other candidates; empty for the first.
    """

    model: ModelArtifact
    model_bytes: int
    label: str = ""


class Evaluation:
    """Every model of a run is asked the same as the baseline.

    Args:
        config: how every candidate is judged.
    """

    def __init__(self, run: Run, pipeline: Pipeline, baseline: Baseline, config: Evaluate) -> None:
        self._run = run
        self._pipeline = pipeline
        self._request = baseline.request(run, pipeline)
        self._config = config
        self._parts = list(pairwise((0, *config.looks)))
        self._baselines: list[ModelArtifact] = []

    def baseline(self, look: int) -> ModelArtifact:
        """The baseline's measurement of the documents that this look adds, measured on first use.

        Raises:
            LmflowsError: it cannot be measured.
        """
        while len(self._baselines) <= look:
            part = self._parts[len(self._baselines)]
            self._baselines.append(self._measure(self._request.model_copy(update={"part": part})))
        return self._baselines[look]

    def parent(self) -> VariantOutcome:
        """The baseline as a variant, compared with itself."""
        first = self.baseline(0)
        variant = self._request.variant
        model = self._request.model
        evidence = self._evaluate(variant, [first], [first])
        return VariantOutcome(
            variant=variant,
            model=model,
            model_bytes=self._run.store.manifest(model.digest).size,
            measurement=first,
            evidence=evidence,
            verdict=judge(read_evidence(evidence), evidence.digest, self._config),
        )

    def judge(self, variant: Variant, candidate: Candidate) -> VariantOutcome:
        """Measure a variant, on more documents for as long as the verdict is open and the budget
        has some.

        Raises:
            LmflowsError: it cannot be measured.
        """
        label = f"{variant} {candidate.label}".strip()
        measured: list[ModelArtifact] = []
        while True:
            look = len(measured)
            asked = {
                "variant": variant,
                "model": candidate.model,
                "baseline": self.baseline(look),
                "part": self._parts[look],
            }
            request = self._request.model_copy(update=asked)
            measured.append(self._measure(request, candidate.label))
            evidence = self._evaluate(label, self._baselines[: look + 1], measured)
            found = read_evidence(evidence)
            verdict = judge(found, evidence.digest, self._config)
            if not wants_more(found, verdict, self._config):
                break
        return VariantOutcome(
            variant=variant,
            model=candidate.model,
            model_bytes=candidate.model_bytes,
            measurement=measured[0],
            evidence=evidence,
            verdict=verdict,
        )

    def variants(
        self, parent: VariantOutcome, served: VariantOutcome, quantized: Candidate, head_dim: int
    ) -> tuple[VariantOutcome, ...]:
        """Every variant of the pipeline in its order, the baseline first, each under load if the
        pipeline says how.

        Args:
            parent: the baseline as a variant.
            served: what is known already of the served variant.
            quantized: the candidate that the quantized variants are of.
        """
        unquantized = Candidate(parent.model, parent.model_bytes)
        outcomes = [parent]
        for variant in self._pipeline.variants[1:]:
            if variant == served.variant:
                outcomes.append(served)
            else:
                candidate = unquantized if variant.startswith("fp16") else quantized
                outcomes.append(self._variant(variant, candidate, head_dim))
        return self.load_tests(outcomes)

    def _variant(self, variant: Variant, candidate: Candidate, head_dim: int) -> VariantOutcome:
        _, kv_bits = weights_and_kv(variant)
        problem = module_of(self._pipeline.engine).refuses_kv(kv_bits, head_dim)
        if problem is None:
            try:
                return self.judge(variant, candidate)
            except LmflowsError as error:
                problem = error.message
        return VariantOutcome(
            variant=variant,
            model=candidate.model,
            model_bytes=candidate.model_bytes,
            problem=problem,
        )

    def load_tests(self, outcomes: Sequence[VariantOutcome]) -> tuple[VariantOutcome, ...]:
        """Put every measured variant under load behind a server of its own, if the pipeline says
        how; one whose server fails has no figures."""
        return tuple(
            self._load_test(outcome) if outcome.measurement else outcome for outcome in outcomes
        )

    def _load_test(self, outcome: VariantOutcome) -> VariantOutcome:
        config = self._pipeline.load
        if config is None:
            return outcome
        request = LoadTestRequest(
            variant=outcome.variant,
            model=outcome.model,
            engine=self._request.engine,
            config=config,
            hardware=self._request.hardware,
        )
        try:
            tested = self._run(load_test, request, label=outcome.variant)
        except LmflowsError as error:
            return outcome.model_copy(update={"problem": f"no load test: {error.message}"})
        return outcome.model_copy(update={"load": tested.measurement})

    def _measure(self, request: MeasureRequest, attempt: str = "") -> ModelArtifact:
        first, last = request.part
        more = f"documents {first + 1}-{last}" if first else ""
        label = " ".join(filter(None, (request.variant, attempt, more)))
        return self._run(measure, request, label=label).measurement

    def _evaluate(
        self, label: str, parents: list[ModelArtifact], candidates: list[ModelArtifact]
    ) -> ModelArtifact:
        request = EvaluateRequest(
            parents=tuple(parents), candidates=tuple(candidates), texts=self._request.texts
        )
        look = f"look {len(parents)}" if len(parents) > 1 else ""
        return self._run(evaluate, request, label=f"{label} {look}".strip()).evidence
