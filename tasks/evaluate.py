"""The evaluate step: what a candidate's measurement says beside its parent's.

Both have scored the same token ids, each through its own engine and KV cache. Hands on the evidence
artifact. Knows nothing of limits: `tasks.quality.verdict` judges.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from artifacts.manifest import ModelArtifact, Parent, canonical_json
from artifacts.records.evidence import (
    EVIDENCE,
    PROBES,
    DocumentScore,
    Evidence,
    Probe,
    SampleAnswer,
)
from artifacts.records.measurement import Answer, read_measurement
from artifacts.records.texts import CALIBRATION, HELD_OUT, read_documents
from tasks.quality.divergence import Pair, divergence, document_score, pair, summarize_kl
from tasks.quality.generation_checks import check
from tasks.quality.item_comparison import compare_items
from tasks.quality.passages import overlap
from tasks.runner.step import Context, Request, Result, step, versions

LIBRARIES = ("numpy",)


class EvaluateRequest(Request):
    """Measurement artifacts of parent and candidate: the first of each has the answers, and each
    further one has more documents."""

    parents: tuple[ModelArtifact, ...] = Field(min_length=1)
    candidates: tuple[ModelArtifact, ...] = Field(min_length=1)
    texts: ModelArtifact


class EvaluateResult(Result):
    evidence: ModelArtifact


@step(child=False, libraries=LIBRARIES, revision=2)  # 2: the versions
def evaluate(request: EvaluateRequest, context: Context) -> EvaluateResult:
    """Set a candidate's scores and answers beside its parent's."""
    pairing = pair(request.parents, request.candidates)
    divergences = [divergence(found.parent, found.candidate) for found in pairing.pairs]
    documents = [
        document_score(found.parent, found.candidate, apart)
        for found, apart in zip(pairing.pairs, divergences, strict=True)
    ]
    parent = read_measurement(request.parents[0])
    candidate = read_measurement(request.candidates[0])
    answers = list(zip(parent.answers, candidate.answers, strict=True))
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
        unpaired=(pairing.only_parent, pairing.only_candidate),
        overlap=overlap(
            read_documents(request.texts.path / CALIBRATION),
            read_documents(request.texts.path / HELD_OUT),
        ),
        tasks=compare_items(parent.items, candidate.items),
        checks=check(parent.probes, candidate.probes) if parent.probes and candidate.probes else (),
        versions=candidate.versions,
        samples=tuple(side_by_side(*both) for both in answers),
        same_prompts=all(left.ids == right.ids for left, right in answers),
    )
    return EvaluateResult(
        evidence=store(evidence, probes(pairing.pairs, documents), request, context)
    )


def side_by_side(parent: Answer, candidate: Answer) -> SampleAnswer:
    """Both models' answers to one prompt."""
    return SampleAnswer(prompt=parent.prompt, parent=parent.text, candidate=candidate.text)


def probes(pairs: Sequence[Pair], documents: Sequence[DocumentScore]) -> list[Probe]:
    """The longest document, for what only shows far from the start, and the shortest."""
    whole = [
        Probe(ids=tuple(found.ids), nll=score.nll_candidate / score.tokens)
        for found, score in zip(pairs, documents, strict=True)
        if score.tokens and not score.broken
    ]
    ordered = sorted(whole, key=lambda probe: -len(probe.ids))
    return [ordered[0], ordered[-1]] if len(ordered) > 1 else ordered


def store(
    evidence: Evidence, asked: Sequence[Probe], request: EvaluateRequest, context: Context
) -> ModelArtifact:
    """The evidence artifact, whose parents are all that it rests on."""
    parents = [
        Parent(role="candidate", digest=evidence.candidate),
        Parent(role="parent", digest=evidence.parent),
        Parent(role="texts", digest=evidence.texts),
        *(Parent(role="measurement", digest=artifact.digest) for artifact in request.candidates),
        *(Parent(role="baseline", digest=artifact.digest) for artifact in request.parents),
    ]
    with context.store.staging() as staging:
        staging.write(PROBES, canonical_json([probe.model_dump(mode="json") for probe in asked]))
        staging.write(EVIDENCE, canonical_json(evidence.model_dump(mode="json")))
        return context.store.commit(
            staging, "evidence", recipe={"versions": versions(LIBRARIES)}, parents=parents
        )
