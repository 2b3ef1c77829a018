"""What two models say of the same token ids: the documents that both have scored, and how far their
distributions are apart.

The KL divergence is that of the distributions in which all tokens but the kept ones are one event:
a lower bound of the full one. All figures are in nats.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from artifacts.manifest import ModelArtifact
from artifacts.records.evidence import DocumentScore, KlDivergence
from artifacts.records.measurement import Scores, read_scores
from configs.errors import SourceError

# of the probability; below it the rest of a distribution is rounding error of float32
SMALLEST_REST = 1e-6


@dataclass(frozen=True)
class Pair:
    """One document under both models; the candidate was asked at the parent's likeliest tokens."""

    ids: list[int]
    parent: Scores
    candidate: Scores


@dataclass(frozen=True)
class Pairing:
    """The documents that both models have scored, in the parent's order, and how many only one of
    them has."""

    pairs: list[Pair]
    only_parent: int
    only_candidate: int


@dataclass(frozen=True)
class Divergence:
    """KL(parent || candidate) of one document.

    Attributes:
        kl: float64[positions].
        whole: bool[positions], those that count: a NaN, or probability 0 for the target or for what
            the parent finds likely, is counted as broken, never averaged in.
    """

    kl: npt.NDArray[np.float64]
    whole: npt.NDArray[np.bool_]


def pair(parents: Sequence[ModelArtifact], candidates: Sequence[ModelArtifact]) -> Pairing:
    """Pair the documents of both models' measurements, token for token.

    Raises:
        SourceError: they have none in common.
    """
    known: dict[tuple[int, ...], list[Scores]] = defaultdict(list)
    scored = 0
    for artifact in candidates:
        for ids, score in zip(*read_scores(artifact), strict=True):
            known[tuple(ids)].append(score)
            scored += 1
    pairs: list[Pair] = []
    asked = 0
    for artifact in parents:
        for ids, score in zip(*read_scores(artifact), strict=True):
            asked += 1
            others = known[tuple(ids)]
            if others:
                pairs.append(Pair(ids, score, others.pop(0)))
    if not pairs:
        raise SourceError(
            "the candidate has scored other token ids than its parent",
            where=f"measurement {candidates[0].short}",
            hint="measure it with the parent's measurement as its baseline",
        )
    return Pairing(pairs, asked - len(pairs), scored - len(pairs))


def divergence(parent: Scores, candidate: Scores) -> Divergence:
    """The KL divergence at each position, and the positions that count."""
    kl = kl_divergence(parent, candidate)
    return Divergence(kl, np.isfinite(parent.nll) & np.isfinite(candidate.nll) & np.isfinite(kl))


def compare(parent: Scores, candidate: Scores) -> DocumentScore:
    """Compare two models on one document; `candidate` was asked at the parent's likeliest
    tokens."""
    return document_score(parent, candidate, divergence(parent, candidate))


def document_score(parent: Scores, candidate: Scores, found: Divergence) -> DocumentScore:
    """The sums of one document over the positions that count."""
    whole = found.whole
    return DocumentScore(
        tokens=int(whole.sum()),
        broken=int((~whole).sum()),
        nll_parent=float(parent.nll[whole].sum()),
        nll_candidate=float(candidate.nll[whole].sum()),
        kl=float(found.kl[whole].sum()),
        same_top=int((parent.top == candidate.top)[whole].sum()),
    )


def summarize_kl(divergences: Sequence[Divergence]) -> KlDivergence:
    """Mean, median and the tail of the KL divergence over all positions of all documents; 0 if all
    are broken."""
    values = np.concatenate([found.kl[found.whole] for found in divergences])
    if not len(values):
        return KlDivergence(mean=0.0, median=0.0, p999=0.0, largest=0.0)
    return KlDivergence(
        mean=float(values.mean()),
        median=float(np.median(values)),
        p999=float(np.quantile(values, 0.999)),
        largest=float(values.max()),
    )


def kl_divergence(
    parent: Scores, candidate: Scores
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """KL(parent || candidate) at each position, float64[positions], over the kept tokens and the
    rest as one event."""
    left = _at_most_one(parent.logprobs.astype(np.float64))
    right = _at_most_one(candidate.logprobs.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(left > -np.inf, np.exp(left) * (left - right), 0.0).sum(-1)
        rest_left = _rest(left)
        rest_right = np.maximum(_rest(right), SMALLEST_REST)
        rest = np.where(
            rest_left > SMALLEST_REST,
            rest_left * (np.log(rest_left) - np.log(rest_right)),
            0.0,
        )
    return np.asarray(np.maximum(kept + rest, 0.0), dtype=np.float64)


def _at_most_one(logprobs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The log-probabilities, scaled so that they add up to 1 at most: float32 sums can exceed 1 by
    a rounding error."""
    excess = np.log(np.exp(logprobs).sum(-1, keepdims=True))
    return np.asarray(logprobs - np.maximum(0.0, excess), dtype=np.float64)


def _rest(logprobs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The probability of all tokens that are not kept."""
    return np.asarray(np.clip(1.0 - np.exp(logprobs).sum(-1), 0.0, 1.0), dtype=np.float64)
