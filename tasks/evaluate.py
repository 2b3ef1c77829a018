"""The evaluate step: what a candidate's measurement says beside its parent's.

Both have scored the same token ids, each through its own engine and KV cache. Hands on the evidence artifact. Knows nothing
of limits: `tasks.verdict` judges.
"""

from __future__ import annotations

import numpy as np
import pydantic

from artifacts.evidence import DocumentScore, Evidence, SampleAnswer
from artifacts.manifest import ModelArtifact, Parent, canonical_json
from configs.errors import SourceError
from tasks.engines.base import Scores
from tasks.measure import read_measurement, read_scores
from tasks.step import Context, Request, Result, step

PROBES = "probes.json"


class EvaluateRequest(Request):
    """Two measurement artifacts."""

    parent: ModelArtifact
    candidate: ModelArtifact


class EvaluateResult(Result):
    evidence: ModelArtifact


class Probe(pydantic.BaseModel):
    """Held-out token ids and the candidate's mean NLL on them (nats a token): a live endpoint must agree with it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    ids: tuple[int, ...]
    nll: float


@step(child=False, libraries=("numpy",))
def evaluate(request: EvaluateRequest, context: Context) -> EvaluateResult:
    """Set a candidate's scores and answers beside its parent's."""
    parent, candidate = read_measurement(request.parent), read_measurement(request.candidate)
    sequences, left = read_scores(request.parent)
    scored, right = read_scores(request.candidate)
    if scored != sequences:
        raise SourceError("the candidate has scored other token ids than its parent", where=f"measurement {request.candidate.short}",
                          hint="measure it with the parent's measurement as its yardstick")
    scores = [compare(one, other) for one, other in zip(left, right, strict=True)]
    evidence = Evidence(
        variant=candidate.variant, engine=candidate.engine, runtime=candidate.runtime, parent=parent.model, candidate=candidate.model,
        texts=candidate.texts, documents=tuple(scores), versions=candidate.versions,
        samples=tuple(SampleAnswer(prompt=one.prompt, parent=one.text, candidate=other.text)
                      for one, other in zip(parent.answers, candidate.answers, strict=True)),
        same_prompts=all(one.ids == other.ids for one, other in zip(parent.answers, candidate.answers, strict=True)))
    probes = [Probe(ids=tuple(ids), nll=score.nll_candidate / score.tokens)
              for ids, score in zip(sequences, scores, strict=True) if score.tokens and not score.broken]
    probes = [probes[0], probes[-1]] if len(probes) > 1 else probes  # the longest, for what only shows far from the start, and the shortest
    with context.store.stage() as staging:
        staging.write(PROBES, canonical_json([probe.model_dump(mode="json") for probe in probes]))
        staging.write("evidence.json", canonical_json(evidence.model_dump(mode="json")))
        artifact = context.store.commit(staging, "evidence", parents=[
            Parent(role="candidate", digest=evidence.candidate), Parent(role="parent", digest=evidence.parent),
            Parent(role="texts", digest=evidence.texts), Parent(role="measurement", digest=request.candidate.digest),
            Parent(role="yardstick", digest=request.parent.digest)])
    return EvaluateResult(evidence=artifact)


def read_evidence(artifact: ModelArtifact) -> Evidence:
    """The evidence of an evidence artifact."""
    return Evidence.model_validate_json((artifact.path / "evidence.json").read_bytes())


def compare(parent: Scores, candidate: Scores) -> DocumentScore:
    """Compare two models on one document; `candidate` was asked at the parent's likeliest tokens.

    The KL divergence is that of the distributions in which all other tokens are one event: a lower bound of the full one.
    """
    kl = kl_divergence(parent, candidate)
    # a NaN, or probability 0 for the target or for what the parent finds likely: counted, never averaged in
    whole = np.isfinite(parent.nll) & np.isfinite(candidate.nll) & np.isfinite(kl)
    return DocumentScore(
        tokens=int(whole.sum()), broken=int((~whole).sum()), nll_parent=float(parent.nll[whole].sum()),
        nll_candidate=float(candidate.nll[whole].sum()), kl=float(kl[whole].sum()),
        same_top=int((parent.top == candidate.top)[whole].sum()))


def kl_divergence(parent: Scores, candidate: Scores) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """KL(parent || candidate) in nats at each position, float64[positions], over the kept tokens and the rest as one event."""
    left, right = parent.logprobs.astype(np.float64), candidate.logprobs.astype(np.float64)
    left, right = left - np.maximum(0.0, np.log(np.exp(left).sum(-1, keepdims=True))), right - np.maximum(
        0.0, np.log(np.exp(right).sum(-1, keepdims=True)))  # float32 sums can exceed 1 by a rounding error
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(left > -np.inf, np.exp(left) * (left - right), 0.0).sum(-1)
        rest_left, rest_right = (np.clip(1.0 - np.exp(one).sum(-1), 0.0, 1.0) for one in (left, right))
        # below 1e-6 the rest is rounding error of float32
        rest = np.where(rest_left > 1e-6, rest_left * (np.log(rest_left) - np.log(np.maximum(rest_right, 1e-6))), 0.0)
    return np.asarray(np.maximum(kept + rest, 0.0), dtype=np.float64)
