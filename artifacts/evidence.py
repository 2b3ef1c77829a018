"""Measurement, evidence, verdict: what was measured of each variant, what that says of a candidate beside its parent, and
the decision that rests on it.

Data only, as it is stored; `tasks.measure` measures, `tasks.evaluate` compares and `tasks.verdict` judges. All NLL and KL
figures are in nats.
"""

from __future__ import annotations

import math
import statistics
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from artifacts.manifest import Digest


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(_Frozen):
    """A greedy answer to one prompt. `ids`: the prompt's token ids through the variant's own chat template."""

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


class DocumentScore(_Frozen):
    """One held-out document under both models: sums over its scored tokens (all but the first).

    Attributes:
        broken: positions at which a model gave NaN or probability 0; they are not among `tokens`.
        kl: sum of KL(parent || candidate) over the positions, with all but the parent's likeliest tokens as one event.
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


class Evidence(_Frozen):
    """Parent and candidate on the same held-out documents, each through the engine and KV cache that would serve it."""

    variant: str
    engine: str
    runtime: str
    parent: Digest
    candidate: Digest
    texts: Digest
    documents: tuple[DocumentScore, ...] = Field(min_length=1)
    samples: tuple[SampleAnswer, ...]
    same_prompts: bool = Field(description="both tokenizers and chat templates render the sample prompts to the same ids")
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
    def mean_kl(self) -> float:
        return sum(document.kl for document in self.documents) / max(1, self.tokens)

    @property
    def top1_agreement(self) -> float:
        return sum(document.same_top for document in self.documents) / max(1, self.tokens)


class Verdict(_Frozen):
    """The decision about a candidate, with its reasons in plain words."""

    outcome: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    reasons: tuple[str, ...] = Field(min_length=1)
    candidate: Digest
    evidence: Digest


def _exp(nats: float) -> float:
    """exp, with overflow as infinity: a ruined model has a perplexity beyond any float."""
    return math.exp(nats) if nats < 700 else math.inf
