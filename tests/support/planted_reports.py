"""Report requests over planted artifacts: measurements and evidence through the real classes, with
figures that could be real."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save

from artifacts.manifest import ModelArtifact, Parent, canonical_json
from artifacts.records.checks import CheckResult, Example
from artifacts.records.evidence import (
    DocumentScore,
    Evidence,
    KlDivergence,
    SampleAnswer,
    read_evidence,
)
from artifacts.records.items import TaskComparison
from artifacts.records.load_results import (
    LOAD,
    Environment,
    Load,
    LoadReport,
    LoadResult,
    Target,
    Warmup,
)
from artifacts.records.measurement import MEASUREMENT, Answer, Measurement, Speed
from artifacts.records.model import ModelSummary, SmokeTestRecord, Turn
from artifacts.records.outcomes import Attempt, Choice, StepTime, VariantOutcome
from artifacts.store.local import LocalStore
from configs.evaluation import Evaluate
from configs.variants import Variant
from tasks.load.metrics import summarize
from tasks.load.pool import Measured
from tasks.quality.verdict import judge
from tasks.report import ReportRequest

PROMPTS = (
    "hello",
    "please provide three suggestions about ielts' preparation",
    "What is a list in Python?",
)
ANSWERS = (
    "Hello! How can I assist you today?",
    (
        "1. **Practice speaking** every day with a partner, and record yourself.\n2. Read articles"
        " on many subjects.\n3. Take timed mock tests."
    ),
    (
        "A list in Python is a mutable, ordered collection of items:\n\n    fruits = ['apple',"
        " 'banana']\n    fruits.append('cherry')"
    ),
)
OTHERS = (
    "Hello! I'm here to help. What can I do for you?",
    (
        "1. Practice speaking with others.\n2. Read widely, and note new words.\n3. Do practice"
        " tests with a clock beside you."
    ),
    (
        "A list in Python is a data structure that holds items in order. It can be changed:\n\n   "
        " numbers = [1, 2, 3]\n    numbers.append(4)"
    ),
)
HARDWARE = {"gpu": "NVIDIA H200", "driver": "570.86.15", "gpus": "1"}
VERSIONS = {"lmdeploy": "0.17.0", "python": "3.11.9", "torch": "2.8.0", "transformers": "4.57.1"}
SPEEDS: dict[str, tuple[float, float]] = {
    "fp16": (1, 1),
    "w4a16": (1.9, 0.82),
    "w4a16-kv8": (1.8, 0.95),
    "w4a16-kv4": (1.7, 1.04),
}


def planted_model(
    store: LocalStore,
    kind: Literal["fp16", "w4a16", "texts"],
    content: str,
    *,
    parents: Sequence[Parent] = (),
    recipe: dict[str, Any] | None = None,
) -> ModelArtifact:
    config = {
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "hidden_size": 2048,
    }
    with store.staging() as staging:
        staging.write(
            "model.safetensors", save({"weight": np.zeros(1, np.float16)}, {"content": content})
        )
        staging.write("config.json", canonical_json(config))
        return store.commit(staging, kind, parents=parents, recipe=recipe)


def measured(
    store: LocalStore,
    variant: Variant,
    model: ModelArtifact,
    texts: ModelArtifact,
    *,
    speeds: bool = True,
) -> ModelArtifact:
    """A measurement; quantized weights decode faster alone and slower in large batches."""
    record_speeds = tuple(
        _speed(variant, batch, tokens_per_second)
        for batch, tokens_per_second in ((1, 182.0), (16, 2450.0), (128, 11800.0))
    )
    record = Measurement(
        variant=variant,
        engine="turbomind",
        runtime="default",
        versions=VERSIONS,
        hardware=HARDWARE,
        model=model.digest,
        texts=texts.digest,
        answers=tuple(
            Answer(prompt=prompt, ids=(1, 2), text=text, tokens=9, seconds=0.5)
            for prompt, text in zip(PROMPTS, ANSWERS, strict=True)
        ),
        load_seconds=11.4,
        gpu_bytes=5_200_000_000,
        speeds=record_speeds if speeds else (),
    )
    with store.staging() as staging:
        staging.write(MEASUREMENT, canonical_json(record.model_dump(mode="json")))
        return store.commit(
            staging,
            "measurement",
            parents=[
                Parent(role="model", digest=model.digest),
                Parent(role="texts", digest=texts.digest),
            ],
        )


def _speed(variant: Variant, batch: int, tokens_per_second: float) -> Speed:
    """Three rounds at a batch size, given what fp16 decodes there."""
    alone, crowded = SPEEDS[variant]
    factors = {1: alone, 128: crowded}
    decode = tokens_per_second * factors.get(batch, (alone + crowded) / 2)
    return Speed(
        batch_size=batch,
        prompt_tokens=512,
        new_tokens=128,
        prefill=tuple(tokens_per_second * 9 * wobble for wobble in (1.01, 1, 0.985)),
        decode=tuple(decode * wobble for wobble in (1, 0.97, 1.02)),
    )


def documents(count: int, loss: float, spread: float, seed: int) -> tuple[DocumentScore, ...]:
    """Scores whose paired differences have this mean and spread, in nats a token."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        tokens = int(rng.integers(90, 420))
        base = float(rng.normal(2.35, 0.3))
        found.append(
            DocumentScore(
                tokens=tokens,
                nll_parent=base * tokens,
                nll_candidate=(base + float(rng.normal(loss, spread))) * tokens,
                kl=abs(loss) * 1.4 * tokens,
                same_top=int(tokens * 0.943),
            )
        )
    return tuple(found)


def compared(
    store: LocalStore,
    parent: ModelArtifact,
    candidate: ModelArtifact,
    texts: ModelArtifact,
    variant: Variant,
    *,
    loss: float = 0.021,
    spread: float = 0.016,
    count: int = 24,
    seed: int = 3,
    **more: Any,
) -> ModelArtifact:
    """Evidence about a candidate."""
    evidence = Evidence.model_validate(
        {
            "variant": variant,
            "engine": "turbomind",
            "runtime": "default",
            "parent": parent.digest,
            "candidate": candidate.digest,
            "texts": texts.digest,
            "documents": documents(count, loss, spread, seed),
            "kl": KlDivergence(mean=abs(loss) * 1.4, median=0.0061, p999=0.83, largest=2.94),
            "samples": tuple(
                SampleAnswer(prompt=prompt, parent=before, candidate=after)
                for prompt, before, after in zip(PROMPTS, ANSWERS, OTHERS, strict=True)
            ),
            "same_prompts": True,
            "versions": VERSIONS,
        }
        | more
    )
    with store.staging() as staging:
        staging.write("evidence.json", canonical_json(evidence.model_dump(mode="json")))
        return store.commit(
            staging,
            "evidence",
            parents=[
                Parent(role="candidate", digest=candidate.digest),
                Parent(role="parent", digest=parent.digest),
                Parent(role="texts", digest=texts.digest),
            ],
        )


TASKS = (
    TaskComparison(
        task="arc_easy",
        n=570,
        parent_correct=411,
        candidate_correct=405,
        lost=14,
        gained=8,
        p_two_sided=0.286,
        p_worse=0.143,
        p_worse_holm=0.286,
        detectable_drop=0.021,
    ),
    TaskComparison(
        task="gsm8k",
        n=250,
        parent_correct=96,
        candidate_correct=88,
        lost=17,
        gained=9,
        p_two_sided=0.169,
        p_worse=0.0843,
        p_worse_holm=0.253,
        detectable_drop=0.047,
    ),
)
CHECKS = (
    CheckResult(
        name="answers end",
        n=40,
        parent_failures=1,
        candidate_failures=1,
        new_failures=0,
        passed=True,
        why="no answer fails that its parent gets right",
    ),
    CheckResult(
        name="tool calls",
        n=0,
        parent_failures=0,
        candidate_failures=0,
        new_failures=0,
        passed=None,
        why="the chat template offers no functions",
    ),
    CheckResult(
        name="repetition",
        n=40,
        parent_failures=1,
        candidate_failures=3,
        new_failures=2,
        passed=True,
        why="2 new loops of 40 could be chance",
        examples=(
            Example(
                prompt="Explain in two sentences why the sky is blue.",
                parent="Sunlight is scattered by the air, blue the most.",
                candidate=(
                    "The sky is blue because the sky is blue because the sky is blue because the"
                    " sky is blue"
                ),
            ),
        ),
    ),
)


def loaded(
    store: LocalStore,
    variant: Variant,
    model: ModelArtifact,
    *,
    concurrencies: Sequence[int] = (1, 8, 32),
) -> ModelArtifact:
    """A load test of a server that is faster alone than in company, its heaviest load with errors
    if the variant is fp16."""
    results = tuple(_load_result(variant, concurrency, 400) for concurrency in concurrencies)
    with store.staging() as staging:
        staging.write(
            LOAD,
            canonical_json(
                LoadReport(variant=variant, model=model.digest, results=results).model_dump(
                    mode="json"
                )
            ),
        )
        return store.commit(
            staging, "measurement", parents=[Parent(role="model", digest=model.digest)]
        )


def _load_result(variant: Variant, concurrency: int, requests: int) -> LoadResult:
    rng = np.random.default_rng(concurrency)
    alone, crowded = SPEEDS[variant]
    each = (
        0.0055
        / (alone if concurrency < 8 else crowded)
        * (1 + 0.02 * concurrency)
        * rng.gamma(60, 1 / 60, requests)
    )
    ttft = 0.021 * (1 + 0.05 * concurrency) * rng.gamma(12, 1 / 12, requests)
    e2e = ttft + 127 * each
    start = np.concatenate([np.zeros(concurrency), np.cumsum(e2e / concurrency)])[:requests]
    status = np.full(requests, "ok", "U32")
    if variant == "fp16" and concurrency > 16:
        status[::20] = "timeout"
    columns = {
        "number": np.arange(requests),
        "start": start,
        "lag": np.full(requests, 1e-4),
        "ttft": ttft,
        "e2e": e2e,
        "tokens": np.full(requests, 128),
        "prompt_tokens": np.full(requests, 512),
        "chunks": np.full(requests, 128),
        "status": status,
        "gap_counts": np.zeros(requests, np.int64),
    }
    return summarize(
        Load(concurrency=concurrency, requests=requests, prompt_tokens=512, new_tokens=128),
        Target(url="http://127.0.0.1:23333", model="m"),
        Measured(columns, np.empty(0, np.float32), np.full(100, 0.001), (0.2,), ""),
        Warmup(medians=(1.0, 1.0), steady=True),
        Environment(
            fingerprint={"gpu": "NVIDIA H200"},
            engine={"lmdeploy": "0.17.0", "artifact": "f" * 64},
            client={"aiohttp": "3.14"},
        ),
        datetime(2026, 1, 1, tzinfo=UTC),
    )


class Site:
    """A parent, its candidate and the texts in a store, and requests about them."""

    def __init__(self, store: LocalStore) -> None:
        self.store = store
        self.texts = planted_model(store, "texts", "words")
        self.parent = planted_model(
            store,
            "fp16",
            "weights",
            recipe={"repository": "internlm/internlm2-chat-1_8b", "license": "apache-2.0"},
        )
        self.candidate = self.quantized("awq")

    def quantized(self, name: str, **more: Any) -> ModelArtifact:
        return planted_model(
            self.store,
            "w4a16",
            name,
            recipe={
                "method": "awq",
                "bits": 4,
                "group_size": 128,
                "samples": 128,
                "sequence_length": 2048,
                "search_scale": False,
                "seed": 0,
                "dtype": "float16",
                "calibration_sha256": "5e" * 32,
                "versions": {"lmdeploy": "0.17.0", "torch": "2.8.0"},
            }
            | more,
            parents=[
                Parent(role="model", digest=self.parent.digest),
                Parent(role="texts", digest=self.texts.digest),
            ],
        )

    def baseline(self, **more: Any) -> VariantOutcome:
        found = compared(self.store, self.parent, self.parent, self.texts, "fp16", loss=0, spread=0)
        return VariantOutcome.model_validate(
            {
                "variant": "fp16",
                "model": self.parent,
                "model_bytes": 3_790_000_000,
                "measurement": measured(self.store, "fp16", self.parent, self.texts),
                "evidence": found,
                "verdict": judge(read_evidence(found), found.digest, config()),
            }
            | more
        )

    def variant(
        self, name: Variant = "w4a16", *, load: ModelArtifact | None = None, **evidence: Any
    ) -> VariantOutcome:
        found = compared(self.store, self.parent, self.candidate, self.texts, name, **evidence)
        return VariantOutcome(
            variant=name,
            model=self.candidate,
            model_bytes=1_330_000_000,
            measurement=measured(self.store, name, self.candidate, self.texts),
            load=load,
            evidence=found,
            verdict=judge(read_evidence(found), found.digest, config()),
        )

    def minimal(self, **evidence: Any) -> ReportRequest:
        """A comparison of two artifacts: no model check, smoke test, attempts or steps, and nothing
        timed."""
        return ReportRequest(
            name="A beside B",
            served="w4a16",
            config=config(),
            variants=(
                self.baseline(
                    evidence=None,
                    measurement=measured(self.store, "fp16", self.parent, self.texts, speeds=False),
                ),
                VariantOutcome(
                    variant="w4a16",
                    model=self.candidate,
                    model_bytes=1_330_000_000,
                    measurement=measured(
                        self.store, "w4a16", self.candidate, self.texts, speeds=False
                    ),
                    evidence=compared(
                        self.store, self.parent, self.candidate, self.texts, "w4a16", **evidence
                    ),
                ),
            ),
        )

    def twins(self) -> ReportRequest:
        """A comparison of two candidates that are told apart by their digests alone, with all that
        can be drawn."""
        other = self.quantized("another", seed=1)
        first = self.variant(load=loaded(self.store, "w4a16", self.candidate)).model_copy(
            update={"evidence": None}
        )
        second = first.model_copy(
            update={
                "model": other,
                "model_bytes": 1_400_000_000,
                "evidence": compared(self.store, self.candidate, other, self.texts, "w4a16"),
            }
        )
        return ReportRequest(name="two", served="w4a16", config=config(), variants=(first, second))

    def baseline_served(self) -> ReportRequest:
        """A run whose choice is fp16."""
        return ReportRequest(
            name="fp16 it is",
            served="fp16",
            config=config(),
            variants=(self.baseline(), self.variant(loss=0.12)),
        )

    def whole(self, **evidence: Any) -> ReportRequest:
        """A run with everything that a report can have."""
        first = self.quantized("first attempt", search_scale=False, samples=32)
        served = self.variant(
            "w4a16",
            load=loaded(self.store, "w4a16", self.candidate),
            **({"tasks": TASKS, "checks": CHECKS} | evidence),
        )
        assert served.evidence is not None
        return ReportRequest(
            name="internlm2-chat-1_8b",
            served="w4a16",
            config=config(),
            variants=(
                self.baseline(load=loaded(self.store, "fp16", self.parent)),
                served,
                self.variant(
                    "w4a16-kv8",
                    load=loaded(self.store, "w4a16-kv8", self.candidate),
                    loss=0.024,
                    seed=5,
                ),
                VariantOutcome(
                    variant="w4a16-kv4",
                    model=self.candidate,
                    model_bytes=1_330_000_000,
                    problem="KV int4 needs a head dimension of 128; this model has 64",
                ),
            ),
            attempts=(
                Attempt(
                    change="",
                    candidate=first,
                    model_bytes=1_330_000_000,
                    evidence=compared(
                        self.store, self.parent, first, self.texts, "w4a16", loss=0.09, seed=9
                    ),
                ),
                Attempt(
                    change="quantize.search_scale: true",
                    candidate=self.candidate,
                    model_bytes=1_330_000_000,
                    evidence=served.evidence,
                ),
            ),
            choice=Choice(
                objective="throughput",
                unit="new tokens/s",
                figures=(("w4a16", 9676.0), ("w4a16-kv8", 9120.0)),
                why="the fastest of those that pass",
            ),
            model=ModelSummary(
                architecture="InternLM2ForCausalLM",
                parameters=1_889_110_016,
                parent_bytes=3_790_000_000,
                candidate_bytes=1_330_000_000,
                hidden_size=2048,
                head_dim=128,
                vocabulary=92544,
            ),
            smoke_test=SmokeTestRecord(
                turns=(Turn(prompt="hello", answer="Hello!", tokens=3, seconds=0.2),),
                load_seconds=9.8,
                tokens_per_second=71.3,
                peak_rss_bytes=5_100_000_000,
                dtype="float16",
            ),
            steps=(
                StepTime(
                    name="download", seconds=41.2, peak_rss_bytes=210_000_000, peak_gpu_bytes=None
                ),
                StepTime(
                    name="quantize",
                    seconds=412.7,
                    peak_rss_bytes=9_400_000_000,
                    peak_gpu_bytes=14_200_000_000,
                ),
                StepTime(
                    name="measure fp16",
                    seconds=61.0,
                    peak_rss_bytes=4_400_000_000,
                    peak_gpu_bytes=118_000_000_000,
                ),
                StepTime(
                    name="measure w4a16",
                    seconds=58.4,
                    peak_rss_bytes=4_100_000_000,
                    peak_gpu_bytes=118_000_000_000,
                ),
            ),
        )


def config(ratio: float = 1.05) -> Evaluate:
    return Evaluate(max_perplexity_ratio=ratio)


OUTCOMES: dict[str, dict[str, Any]] = {
    "PASS": {},
    "FAIL": {"loss": 0.12},
    "INCONCLUSIVE": {"loss": 0.049},
    "ANOMALOUS": {"loss": -0.08},
}
RUINED: dict[str, Any] = {"loss": 900.0, "spread": 5.0}
# what the losses above lie around
assert math.isclose(math.log(config().max_perplexity_ratio), 0.04879, abs_tol=1e-4)
