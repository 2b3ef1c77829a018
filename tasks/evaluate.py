"""The evaluate step: what a candidate's measurement says beside its parent's.

Both have scored the same token ids, each through its own engine and KV cache. Hands on the evidence
artifact. Knows nothing of limits: `tasks.quality.verdict` judges.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pydantic
from pydantic import Field

from artifacts.manifest import ModelArtifact, Parent, canonical_json
from artifacts.records.evidence import DocumentScore, Evidence, KlDivergence, SampleAnswer
from artifacts.records.texts import CALIBRATION, HELD_OUT, read_documents
from configs.errors import SourceError
from tasks.engines.protocol import Scores
from tasks.measure import read_measurement, read_scores
from tasks.quality.generation_checks import check
from tasks.quality.items import compare_items
from tasks.quality.passages import overlap
from tasks.runner.step import Context, Request, Result, step, versions

PROBES = "probes.json"
LIBRARIES = ("numpy",)
Paired = tuple[list[int], Scores, Scores]
Divergence = tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]


class EvaluateRequest(Request):
    """Measurement artifacts of parent and candidate: the first of each has the answers, and each
    further one has more documents."""

    parents: tuple[ModelArtifact, ...] = Field(min_length=1)
    candidates: tuple[ModelArtifact, ...] = Field(min_length=1)
    texts: ModelArtifact


class EvaluateResult(Result):
    evidence: ModelArtifact


class Probe(pydantic.BaseModel):
    """Held-out token ids and the candidate's mean NLL on them (nats a token): a live endpoint must
    agree with it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    ids: tuple[int, ...]
    nll: float


@step(child=False, libraries=LIBRARIES, revision=2)  # 2: the versions
def evaluate(request: EvaluateRequest, context: Context) -> EvaluateResult:
    """Set a candidate's scores and answers beside its parent's."""
    parent, candidate = (
        read_measurement(request.parents[0]),
        read_measurement(request.candidates[0]),
    )
    paired, unpaired = pair(request.parents, request.candidates)
    divergences = [divergence(left, right) for _, left, right in paired]
    documents = [
        _score(left, right, *found)
        for (_, left, right), found in zip(paired, divergences, strict=True)
    ]
    evidence = Evidence(
        variant=candidate.variant,
        engine=candidate.engine,
        runtime=candidate.runtime,
        parent=parent.model,
        candidate=candidate.model,
        texts=candidate.texts,
        documents=tuple(documents),
        kl=summarize_kl(divergences),
        looks=len(request.candidates),
        itself=request.parents == request.candidates,
        unpaired=unpaired,
        overlap=overlap(
            read_documents(request.texts.path / CALIBRATION),
            read_documents(request.texts.path / HELD_OUT),
        ),
        tasks=compare_items(parent.items, candidate.items),
        checks=check(parent.probes, candidate.probes) if parent.probes and candidate.probes else (),
        versions=candidate.versions,
        samples=tuple(
            SampleAnswer(prompt=one.prompt, parent=one.text, candidate=other.text)
            for one, other in zip(parent.answers, candidate.answers, strict=True)
        ),
        same_prompts=all(
            one.ids == other.ids
            for one, other in zip(parent.answers, candidate.answers, strict=True)
        ),
    )
    with context.store.staging() as staging:
        staging.write(
            PROBES,
            canonical_json([probe.model_dump(mode="json") for probe in probes(paired, documents)]),
        )
        staging.write("evidence.json", canonical_json(evidence.model_dump(mode="json")))
        artifact = context.store.commit(
            staging,
            "evidence",
            recipe={"versions": versions(LIBRARIES)},
            parents=[
                Parent(role="candidate", digest=evidence.candidate),
                Parent(role="parent", digest=evidence.parent),
                Parent(role="texts", digest=evidence.texts),
                *(Parent(role="measurement", digest=one.digest) for one in request.candidates),
                *(Parent(role="baseline", digest=one.digest) for one in request.parents),
            ],
        )
    return EvaluateResult(evidence=artifact)


def pair(
    parents: Sequence[ModelArtifact], candidates: Sequence[ModelArtifact]
) -> tuple[list[Paired], tuple[int, int]]:
    """The documents that both models have scored, token for token, in the parent's order; and how
    many only one of them has.

    Raises:
        SourceError: they have none in common.
    """
    known: dict[tuple[int, ...], list[Scores]] = defaultdict(list)
    scored = 0
    for artifact in candidates:
        for ids, score in zip(*read_scores(artifact), strict=True):
            known[tuple(ids)].append(score)
            scored += 1
    paired: list[Paired] = []
    asked = 0
    for artifact in parents:
        for ids, score in zip(*read_scores(artifact), strict=True):
            asked += 1
            if others := known[tuple(ids)]:
                paired.append((ids, score, others.pop(0)))
    if not paired:
        raise SourceError(
            "the candidate has scored other token ids than its parent",
            where=f"measurement {candidates[0].short}",
            hint="measure it with the parent's measurement as its baseline",
        )
    return paired, (asked - len(paired), scored - len(paired))


def probes(paired: Sequence[Paired], documents: Sequence[DocumentScore]) -> list[Probe]:
    """The longest document, for what only shows far from the start, and the shortest."""
    whole = [
        Probe(ids=tuple(ids), nll=score.nll_candidate / score.tokens)
        for (ids, _, _), score in zip(paired, documents, strict=True)
        if score.tokens and not score.broken
    ]
    ordered = sorted(whole, key=lambda probe: -len(probe.ids))
    return [ordered[0], ordered[-1]] if len(ordered) > 1 else ordered


def read_evidence(artifact: ModelArtifact) -> Evidence:
    """The evidence of an evidence artifact."""
    return Evidence.model_validate_json((artifact.path / "evidence.json").read_bytes())


def compare(parent: Scores, candidate: Scores) -> DocumentScore:
    """Compare two models on one document; `candidate` was asked at the parent's likeliest tokens.

    The KL divergence is that of the distributions in which all other tokens are one event: a lower
    bound of the full one.
    """
    return _score(parent, candidate, *divergence(parent, candidate))


def summarize_kl(divergences: Sequence[Divergence]) -> KlDivergence:
    """Mean, median and the tail of the KL divergence over all positions of all documents; 0 if all
    are broken."""
    values = np.concatenate([kl[whole] for kl, whole in divergences])
    if not len(values):
        return KlDivergence(mean=0.0, median=0.0, p999=0.0, largest=0.0)
    return KlDivergence(
        mean=float(values.mean()),
        median=float(np.median(values)),
        p999=float(np.quantile(values, 0.999)),
        largest=float(values.max()),
    )


def divergence(parent: Scores, candidate: Scores) -> Divergence:
    """KL at each position, and the positions that count: a NaN, or probability 0 for the target or
    for what the parent finds likely, is counted as broken, never averaged in."""
    kl = kl_divergence(parent, candidate)
    return kl, np.isfinite(parent.nll) & np.isfinite(candidate.nll) & np.isfinite(kl)


def _score(
    parent: Scores, candidate: Scores, kl: npt.NDArray[np.float64], whole: npt.NDArray[np.bool_]
) -> DocumentScore:
    return DocumentScore(
        tokens=int(whole.sum()),
        broken=int((~whole).sum()),
        nll_parent=float(parent.nll[whole].sum()),
        nll_candidate=float(candidate.nll[whole].sum()),
        kl=float(kl[whole].sum()),
        same_top=int((parent.top == candidate.top)[whole].sum()),
    )


def kl_divergence(
    parent: Scores, candidate: Scores
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """KL(parent || candidate) in nats at each position, float64[positions], over the kept tokens
    and the rest as one event."""
    left, right = parent.logprobs.astype(np.float64), candidate.logprobs.astype(np.float64)
    left, right = (
        left - np.maximum(0.0, np.log(np.exp(left).sum(-1, keepdims=True))),
        right
        - np.maximum(
            # float32 sums can exceed 1 by a rounding error
            0.0,
            np.log(np.exp(right).sum(-1, keepdims=True)),
        ),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(left > -np.inf, np.exp(left) * (left - right), 0.0).sum(-1)
        rest_left, rest_right = (
            np.clip(1.0 - np.exp(one).sum(-1), 0.0, 1.0) for one in (left, right)
        )
        # below 1e-6 the rest is rounding error of float32
        rest = np.where(
            rest_left > 1e-6,
            rest_left * (np.log(rest_left) - np.log(np.maximum(rest_right, 1e-6))),
            0.0,
        )
    return np.asarray(np.maximum(kept + rest, 0.0), dtype=np.float64)
