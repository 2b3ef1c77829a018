"""Measurement, evidence, verdict: what was measured of each variant, what that says of a candidate
beside its parent, and the decision that rests on it.

Data only, as it is stored; `tasks.measure` measures, `tasks.evaluate` compares and
`tasks.quality.verdict` judges. All NLL and KL figures are in nats.
"""

from __future__ import annotations

import math
import statistics
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from artifacts.manifest import Digest
from artifacts.records.checks import CheckResult, ProbeAnswers
from artifacts.records.items import ItemOutcome, TaskComparison
from artifacts.records.load_results import Environment

PAGE = "report.html"  # of a report artifact, for people


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(_Frozen):
    """A greedy answer to one prompt. `ids`: the prompt's token ids through the variant's own chat
    template."""

    prompt: str
    ids: tuple[int, ...]
    text: str
    tokens: int
    seconds: float


class Speed(_Frozen):
    """Tokens per second of one batch size, each round's figure.

    Attributes:
        prefill: prompt tokens, over the time to the first new token of the whole batch.
        decode: new tokens, over the time from prompt to last token; prompts of 16 tokens.
    """

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    prefill: tuple[float, ...]
    decode: tuple[float, ...]

    @property
    def prefill_median(self) -> float:
        return statistics.median(self.prefill)

    @property
    def decode_median(self) -> float:
        return statistics.median(self.decode)


class Measurement(_Frozen):
    """One variant through the engine that serves it; the scores of its tokens lie beside it.

    Attributes:
        load_seconds: from the engine's call to a loaded model, without Python's imports.
        gpu_bytes: device memory taken by loading it, KV cache included; None without a GPU.
        hardware: the GPUs, or the processor.
        items: outcomes of the task items, in their order.
        probes: answers for the generation checks; None if none were asked.
        environment: clocks, temperature, power and load while it was timed; None if it was not.
    """

    variant: str
    engine: str
    runtime: str
    versions: dict[str, str]
    hardware: dict[str, str]
    model: Digest
    texts: Digest
    answers: tuple[Answer, ...]
    load_seconds: float
    gpu_bytes: int | None
    speeds: tuple[Speed, ...]
    items: tuple[ItemOutcome, ...] = ()
    probes: ProbeAnswers | None = None
    environment: Environment | None = None


class DocumentScore(_Frozen):
    """One held-out document under both models: sums over its scored tokens (all but the first).

    Attributes:
        broken: positions at which a model gave NaN or probability 0; they are not among `tokens`.
        kl: sum of KL(parent || candidate) over the positions, with all but the parent's likeliest
            tokens as one event.
        same_top: positions at which both models rank the same token first.
    """

    tokens: int = Field(ge=0)
    broken: int = Field(default=0, ge=0)
    nll_parent: float
    nll_candidate: float
    kl: float
    same_top: int


class SampleAnswer(_Frozen):
    """Greedy answers of both models to one prompt."""

    prompt: str
    parent: str
    candidate: str


class KlDivergence(_Frozen):
    """KL(parent || candidate) over all scored positions, in nats, with all but the parent's
    likeliest tokens as one event."""

    mean: float
    median: float
    p999: float = Field(description="the 99.9 % quantile")
    largest: float


class Evidence(_Frozen):
    """Parent and candidate on the same held-out documents, each through the engine and KV cache
    that would serve it.

    Attributes:
        itself: the parent's own measurement stands for the candidate's.
        looks: how many times documents were scored: once, and again for each time that too few had
            been.
        unpaired: documents that only the parent, and that only the candidate has scored; they are
            not among `documents`.
        overlap: held-out documents that share a passage with the calibration text.
    """

    variant: str
    engine: str
    runtime: str
    parent: Digest
    candidate: Digest
    texts: Digest
    documents: tuple[DocumentScore, ...] = Field(min_length=1)
    kl: KlDivergence
    looks: int = Field(default=1, ge=1)
    itself: bool = False
    unpaired: tuple[int, int] = (0, 0)
    overlap: int = 0
    tasks: tuple[TaskComparison, ...] = ()
    checks: tuple[CheckResult, ...] = ()
    samples: tuple[SampleAnswer, ...]
    same_prompts: bool = Field(
        description="both tokenizers and chat templates render the sample prompts to the same ids"
    )
    versions: dict[str, str]

    @property
    def tokens(self) -> int:
        return sum(document.tokens for document in self.documents)

    @property
    def broken(self) -> int:
        return sum(document.broken for document in self.documents)

    @property
    def nll_parent(self) -> float:
        """Mean negative log-likelihood per token."""
        return sum(document.nll_parent for document in self.documents) / max(1, self.tokens)

    @property
    def nll_candidate(self) -> float:
        return sum(document.nll_candidate for document in self.documents) / max(1, self.tokens)

    @property
    def perplexity_parent(self) -> float:
        return _exp(self.nll_parent)

    @property
    def perplexity_candidate(self) -> float:
        return _exp(self.nll_candidate)

    @property
    def perplexity_ratio(self) -> float:
        """Candidate over parent: exp of the mean difference in NLL."""
        return _exp(self.nll_candidate - self.nll_parent)

    @property
    def top1_agreement(self) -> float:
        return sum(document.same_top for document in self.documents) / max(1, self.tokens)


class Difference(_Frozen):
    """The paired difference in NLL, candidate minus parent, in nats a token: what the verdict rests
    on.

    Attributes:
        low, high: the interval's limits; `confidence` holds over all looks that were planned.
        smallest_detectable: the smallest true loss that this sample would have shown (interval
            above 0) four times in five.
    """

    mean: float
    low: float
    high: float
    confidence: float
    documents: int
    tokens: int
    smallest_detectable: float

    @property
    def ratio(self) -> tuple[float, float, float]:
        """The same as a ratio of perplexities, candidate over parent, with its limits."""
        return _exp(self.mean), _exp(self.low), _exp(self.high)


class Verdict(_Frozen):
    """The decision about a candidate, with its reasons in plain words.

    PASS: not worse than the margin allows. FAIL: worse, or broken. INCONCLUSIVE: too little was
    measured to say. ANOMALOUS: the measurement itself cannot be right.

    Attributes:
        margin: the largest loss that is accepted, in nats a token.
        difference: None if too few documents were scored for an interval.
    """

    outcome: Literal["PASS", "FAIL", "INCONCLUSIVE", "ANOMALOUS"]
    reasons: tuple[str, ...] = Field(min_length=1)
    variant: str
    candidate: Digest
    evidence: Digest
    margin: float
    difference: Difference | None


def _exp(nats: float) -> float:
    """exp, with overflow as infinity: a ruined model has a perplexity beyond any float."""
    return math.exp(nats) if nats < 700 else math.inf
