"""The upload step: artifacts from the workspace into the store, a folder or S3, each verified there
as it is written."""

from __future__ import annotations

from artifacts.manifest import ModelArtifact
from artifacts.store.ancestors import push_lineage
from artifacts.store.local import LocalStore
from artifacts.store.open import open_store
from configs.location import Location
from tasks.runner.step import Context, Request, Result, step


class UploadRequest(Request):
    """`artifacts` go with all their ancestors, these first: nothing in the store ever names what is
    not there."""

    artifacts: tuple[ModelArtifact, ...]
    store: Location


class UploadResult(Result):
    """The uploaded artifacts as folders on this machine: in the store if that is a folder, else in
    the workspace; bytes that were sent."""

    uploaded: tuple[ModelArtifact, ...]
    sent_bytes: int

    def artifacts(self) -> list[ModelArtifact]:
        return list(self.uploaded)


@step(child=False, cached=False, retries=3)
def upload(request: UploadRequest, context: Context) -> UploadResult:
    """Push artifacts and all their parents into the store, and verify what was written."""
    store = open_store(request.store)
    _, sent = push_lineage(
        context.store, store, [artifact.digest for artifact in request.artifacts], context.progress
    )
    here = store if isinstance(store, LocalStore) else context.store
    return UploadResult(
        uploaded=tuple(here.open(artifact.digest) for artifact in request.artifacts),
        sent_bytes=sent,
    )
