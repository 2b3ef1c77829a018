"""The evaluate step: parent and candidate score the same held-out documents and answer the same prompts.

Hands on the evidence artifact. Knows nothing of limits: `tasks.verdict` judges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pydantic

from artifacts.evidence import DocumentScore, Evidence, SampleAnswer
from artifacts.manifest import ModelArtifact, Parent, canonical_json
from configs.errors import SourceError
from configs.schema import Evaluate
from tasks.gpus import cuda_is_visible
from tasks.step import Context, Request, Result, step, versions
from tasks.texts import HELD_OUT, load_records, token_ids

if TYPE_CHECKING:
    import torch

    from tasks.engines.reference import ReferenceEngine

LIBRARIES = ("transformers", "torch")
PROBES = "probes.json"
ROWS_AT_ONCE = 256  # positions compared at a time: two float32 rows of the vocabulary each, 100 MB at 50,000 words


class EvaluateRequest(Request):
    parent: ModelArtifact
    candidate: ModelArtifact
    texts: ModelArtifact
    config: Evaluate
    trust_remote_code: bool = False

    def key_fields(self) -> dict[str, object]:
        """The limit is the verdict's business: changing it must not score again."""
        return super().key_fields() | {"config": self.config.model_dump(mode="json", exclude={"max_perplexity_ratio", "timeout_minutes"}),
                                       "cuda": cuda_is_visible()}


class EvaluateResult(Result):
    evidence: ModelArtifact


class Probe(pydantic.BaseModel):
    """Held-out token ids and the candidate's mean NLL on them (nats a token): a live endpoint must agree with it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    ids: tuple[int, ...]
    nll: float


@step(libraries=LIBRARIES)
def evaluate(request: EvaluateRequest, context: Context) -> EvaluateResult:
    """Score parent and candidate on the held-out documents with the reference engine."""
    import torch

    from tasks.engines.reference import ReferenceEngine

    config = request.config
    device = "cuda" if torch.cuda.is_available() else "cpu"
    context.progress(0.02, "loading the parent")
    parent = ReferenceEngine(request.parent.path, device=device, trust_remote_code=request.trust_remote_code)
    context.progress(0.08, "loading the candidate")
    candidate = ReferenceEngine(request.candidate.path, device=device, trust_remote_code=request.trust_remote_code)
    sequences = held_out_ids(parent, request.texts, config.documents, config.max_tokens_per_document)
    scores: list[DocumentScore] = []
    for batch in _batches(sequences, config.batch_size):
        for ids, left, right in zip(batch, parent.logits(batch), candidate.logits(batch), strict=True):
            scores.append(compare(left, right, torch.tensor(ids[1:], device=left.device)))
        context.progress(0.15 + 0.6 * len(scores) / len(sequences), f"scored {len(scores)}/{len(sequences)} documents")
    samples, same_prompts = _answers(parent, candidate, config, context)
    evidence = Evidence(engine="transformers", dtype="float32", parent=request.parent.digest, candidate=request.candidate.digest,
                        texts=request.texts.digest, documents=tuple(scores), samples=samples, same_prompts=same_prompts,
                        versions=versions(LIBRARIES))
    probes = [Probe(ids=tuple(ids), nll=score.nll_candidate / score.tokens)
              for ids, score in zip(sequences, scores, strict=True) if score.tokens and not score.broken]
    probes = [probes[0], probes[-1]] if len(probes) > 1 else probes  # the longest, for what only shows far from the start, and the shortest
    with context.store.stage() as staging:
        staging.write(PROBES, canonical_json([probe.model_dump(mode="json") for probe in probes]))
        staging.write("evidence.json", canonical_json(evidence.model_dump(mode="json")))
        artifact = context.store.commit(staging, "evidence", parents=[
            Parent(role="candidate", digest=request.candidate.digest), Parent(role="parent", digest=request.parent.digest),
            Parent(role="texts", digest=request.texts.digest)])
    return EvaluateResult(evidence=artifact)


def read_evidence(artifact: ModelArtifact) -> Evidence:
    """The evidence of an evidence artifact."""
    return Evidence.model_validate_json((artifact.path / "evidence.json").read_bytes())


def held_out_ids(engine: ReferenceEngine, texts: ModelArtifact, documents: int, longest: int) -> list[list[int]]:
    """Token ids of the first held-out documents, each cut to its first `longest` tokens, longest first.

    Raises:
        SourceError: no document has two tokens.
    """
    records = load_records(texts.path / HELD_OUT)[:documents]
    sequences = [ids for record in records if len(ids := token_ids(engine.tokenizer, record)[:longest]) >= 2]
    if not sequences:
        raise SourceError("no held-out document has two tokens", where="texts.source", hint="give longer documents")
    return sorted(sequences, key=len, reverse=True)  # batches of equal lengths waste no padding


def compare(parent: torch.Tensor, candidate: torch.Tensor, targets: torch.Tensor) -> DocumentScore:
    """Compare two models on one document.

    Args:
        parent, candidate: logits float32[positions, vocabulary].
        targets: int64[positions], the token that follows each position.
    """
    import torch

    nll_parent = nll_candidate = kl = 0.0
    same_top = broken = 0
    for start in range(0, len(targets), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        left, right = parent[rows].log_softmax(-1), candidate[rows].log_softmax(-1)
        index = targets[rows, None]
        # a row with a NaN, or a target of probability 0, has no finite score: it is counted, never averaged in
        whole = torch.isfinite(left.gather(1, index) + right.gather(1, index))[:, 0] & ~left.isnan().any(-1) & ~right.isnan().any(-1)
        broken += int((~whole).sum())
        left, right, index = left[whole], right[whole], index[whole]
        nll_parent -= left.gather(1, index).double().sum().item()
        nll_candidate -= right.gather(1, index).double().sum().item()
        kl += (left.exp() * (left - right)).nan_to_num().sum(-1).double().sum().item()
        same_top += int((left.argmax(-1) == right.argmax(-1)).sum())
    return DocumentScore(tokens=len(targets) - broken, broken=broken, nll_parent=nll_parent, nll_candidate=nll_candidate, kl=kl,
                         same_top=same_top)


def _batches(sequences: Sequence[list[int]], size: int) -> Iterator[list[list[int]]]:
    for start in range(0, len(sequences), size):
        yield list(sequences[start:start + size])


def _answers(parent: ReferenceEngine, candidate: ReferenceEngine, config: Evaluate, context: Context) -> tuple[tuple[SampleAnswer, ...], bool]:
    samples, same = [], True
    for number, prompt in enumerate(config.prompts):
        context.progress(0.75 + 0.22 * number / len(config.prompts), f"asking {prompt!r}")
        left, right = (engine.prompt_ids([{"role": "user", "content": prompt}]) for engine in (parent, candidate))
        same = same and left == right
        answers = [engine.generate([ids], config.max_new_tokens)[0].text for engine, ids in ((parent, left), (candidate, right))]
        samples.append(SampleAnswer(prompt=prompt, parent=answers[0], candidate=answers[1]))
    return tuple(samples), same
