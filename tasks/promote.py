"""The promote step: point a stage of the model at the candidate, on a PASS and by compare-and-swap."""

from __future__ import annotations

from pathlib import Path

from artifacts.evidence import Verdict
from artifacts.manifest import Digest, ModelArtifact
from artifacts.registry import LocalRegistry, Stage
from configs.errors import VerdictFailed
from tasks.step import Context, Request, Result, step


class PromoteRequest(Request):
    """`report` is the artifact with the verdict."""

    name: str
    stage: Stage
    candidate: ModelArtifact
    report: ModelArtifact
    store: Path
    who: str
    why: str


class PromoteResult(Result):
    """`moved` is False if the stage pointed there already."""

    stage: Stage
    digest: Digest
    previous: Digest | None
    moved: bool


@step(child=False, cached=False)
def promote(request: PromoteRequest, context: Context) -> PromoteResult:
    """Point the stage at the candidate if its verdict is PASS."""
    verdict = Verdict.model_validate_json((request.report.path / "verdict.json").read_bytes())
    if verdict.outcome != "PASS" or verdict.candidate != request.candidate.digest:
        raise VerdictFailed(f"the verdict is {verdict.outcome} for {verdict.candidate[:12]}", where=f"{request.name}/{request.stage}",
                            hint="only an artifact with its own PASS is promoted")
    registry = LocalRegistry(request.store)
    seen = registry.read(request.name, request.stage)
    previous = seen.current.digest if seen.current else None
    moved = previous != request.candidate.digest
    if moved:
        registry.set(seen, digest=request.candidate.digest, verdict=request.report.digest, who=request.who, why=request.why)
    return PromoteResult(stage=request.stage, digest=request.candidate.digest, previous=previous, moved=moved)
