"""The upload step: artifacts from the workspace into the store, each verified there after it was written."""

from __future__ import annotations

from pathlib import Path

from artifacts.manifest import ModelArtifact
from artifacts.store import LocalStore
from tasks.step import Context, Request, Result, step


class UploadRequest(Request):
    """`digests` in the order of lineage, parents first: nothing in the store ever names what is not there."""

    artifacts: tuple[ModelArtifact, ...]
    store: Path


class UploadResult(Result):
    """The uploaded artifacts as they lie in the store; bytes that were not there before."""

    uploaded: tuple[ModelArtifact, ...]
    new_bytes: int

    def artifacts(self) -> list[ModelArtifact]:
        return list(self.uploaded)


@step(child=False, cached=False)
def upload(request: UploadRequest, context: Context) -> UploadResult:
    """Push artifacts and all their parents into the store, and verify what was written."""
    store = LocalStore(request.store)
    new = 0
    order = lineage(context.store, [artifact.digest for artifact in request.artifacts])
    for number, digest in enumerate(order):
        manifest = context.store.manifest(digest)
        context.progress(number / len(order), f"{manifest.kind} {digest[:12]}")
        new += sum(entry.size for entry in manifest.files if not store.blob(entry.sha256).exists())
        store.push(context.store, digest)
    return UploadResult(uploaded=tuple(store.open(artifact.digest) for artifact in request.artifacts), new_bytes=new)


def lineage(store: LocalStore, digests: list[str]) -> list[str]:
    """The digests and all their ancestors, ancestors first, each once."""
    order: list[str] = []

    def visit(digest: str) -> None:
        if digest not in order:
            for parent in store.manifest(digest).parents:
                visit(parent.digest)
            if digest not in order:
                order.append(digest)

    for digest in digests:
        visit(digest)
    return order
