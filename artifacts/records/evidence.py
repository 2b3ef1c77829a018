"""An `evidence` artifact: what a candidate's measurement says beside its parent's.

Data only, as it is stored; `tasks.evaluate` compares and `tasks.quality.verdict` judges. All NLL
and KL figures are in nats.
"""

from __future__ import annotations

import json
import math

from pydantic import Field

from artifacts.manifest import Digest, ModelArtifact
from artifacts.records.checks import CheckResult
from artifacts.records.items import TaskComparison
from artifacts.records.record import Record

EVIDENCE = "evidence.json"
PROBES = "probes.json"


class DocumentScore(Record):
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


class SampleAnswer(Record):
    """Greedy answers of both models to one prompt."""

    prompt: str
    parent: str
    candidate: str


class KlDivergence(Record):
    """KL(parent || candidate) over all scored positions, in nats, with all but the parent's
    likeliest tokens as one event."""

    mean: float
    median: float
    p999: float = Field(description="the 99.9 % quantile")
    largest: float


class Evidence(Record):
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
        return perplexity(self.nll_parent)

    @property
    def perplexity_candidate(self) -> float:
        return perplexity(self.nll_candidate)

    @property
    def perplexity_ratio(self) -> float:
        """Candidate over parent: exp of the mean difference in NLL."""
        return perplexity(self.nll_candidate - self.nll_parent)

    @property
    def top1_agreement(self) -> float:
        return sum(document.same_top for document in self.documents) / max(1, self.tokens)


class Probe(Record):
    """Held-out token ids and the candidate's mean NLL on them (nats a token): a live endpoint must
    agree with it."""

    ids: tuple[int, ...]
    nll: float


def read_evidence(artifact: ModelArtifact) -> Evidence:
    """The record of an evidence artifact."""
    return Evidence.model_validate_json((artifact.path / EVIDENCE).read_bytes())


def read_probes(artifact: ModelArtifact) -> list[Probe]:
    """What a live endpoint is asked to score; none if all that was scored is broken."""
    probes = json.loads((artifact.path / PROBES).read_text())
    return [Probe.model_validate(probe) for probe in probes]


def perplexity(nats: float) -> float:
    """exp, with overflow as infinity: a ruined model has a perplexity beyond any float."""
    return math.exp(nats) if nats < 700 else math.inf
