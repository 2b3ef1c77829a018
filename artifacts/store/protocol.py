"""What every store can do, wherever it lies: a folder (`artifacts.store.local`) or an S3 prefix
(`artifacts.store.s3.store`), same layout (`artifacts.store.layout`).

An artifact exists when its manifest does. Pushing writes blobs first and the manifest last, so a
half sent artifact is never visible; collecting garbage removes the manifest first. Knows no store:
`artifacts.store.open` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from artifacts.manifest import FileEntry, Manifest, ModelArtifact
from artifacts.store.layout import What
from artifacts.store.objects import Objects
from artifacts.store.staging import Staging
from configs.callbacks import Progress, no_progress


@dataclass(frozen=True)
class Problem:
    """One way in which an artifact differs from its manifest."""

    what: Literal["changed", "missing", "extra"]
    path: str

    def __str__(self) -> str:
        return f"{self.what}: {self.path}"


@dataclass(frozen=True)
class Held:
    """A manifest or a blob as it lies in a store: its hex sha256, bytes, and when it was last
    written or touched (Unix time)."""

    name: str
    size: int
    modified: float


class Source(Protocol):
    """A folder that artifacts are pushed from."""

    @property
    def location(self) -> str:
        """The folder, for messages."""
        ...

    def manifest(self, digest: str) -> Manifest:
        """As `Store.manifest`."""
        ...

    def blob(self, sha256: str) -> Path:
        """Where the blob of that hex sha256 lies, if it is there."""
        ...


class Folder(Source, Protocol):
    """A folder that artifacts are pulled into. A pull stages the blobs, moves each to its place,
    and keeps the manifest last."""

    root: Path

    def staging(self) -> AbstractContextManager[Staging]:
        """A folder on the same file system, removed on the way out."""
        ...

    def writing(self) -> AbstractContextManager[None]:
        """Held from the first blob to the manifest: nobody collects garbage meanwhile.

        Raises:
            StoreBusy: somebody collects, and does not finish.
        """
        ...

    def move_blob(self, scratch: Path, entry: FileEntry) -> None:
        """Give a staged file, complete, checked and durable, its place among the blobs."""
        ...

    def keep_manifest(self, manifest: Manifest) -> None:
        """Make an artifact visible whose blobs are all there."""
        ...

    def push(self, source: Source, digest: str, progress: Progress = no_progress) -> int:
        """As `Store.push`."""
        ...

    def open(self, digest: str) -> ModelArtifact:
        """The artifact as a folder that a library can load.

        Raises:
            ArtifactMissing: there is none of that digest.
            ArtifactDamaged: a blob is gone.
        """
        ...


class Store(Protocol):
    """Where artifacts live."""

    @property
    def location(self) -> str:
        """As one names it in a config or on the command line; no credentials."""
        ...

    @property
    def objects(self) -> Objects:
        """Its small mutable files: refs and signatures."""
        ...

    def has(self, digest: str) -> bool:
        """Whether the artifact exists."""
        ...

    def manifest(self, digest: str) -> Manifest:
        """The manifest of an artifact, checked against the digest.

        Raises:
            ArtifactMissing: the store has none of that digest.
            ArtifactDamaged: the stored manifest does not hash to its name.
            UnsafeManifest: it does, and tries to leave its folder or contradicts itself.
        """
        ...

    def digests(self) -> list[str]:
        """The digests of all artifacts, oldest first."""
        ...

    def verify(self, digest: str) -> list[Problem]:
        """Read and hash every file of an artifact where it lies; an empty list means it is
        whole."""
        ...

    def absent(self, digest: str) -> list[Problem]:
        """Like `verify`, by existence and size only: quick, and blind to a flipped byte."""
        ...

    def read(self, digest: str, name: str) -> bytes:
        """One small file of an artifact, checked against its hash.

        Raises:
            ArtifactMissing: no such artifact, or no such file in it.
            ArtifactDamaged: it is not what the manifest says.
        """
        ...

    def push(self, source: Source, digest: str, progress: Progress = no_progress) -> int:
        """Take an artifact over from a folder; returns the bytes that were sent. What is there
        already is not sent again.

        Raises:
            ArtifactDamaged: the source is not what its manifest says; nothing becomes visible.
            TransferError: it broke off; what was sent is kept for the next attempt, and nothing is
                visible.
        """
        ...

    def pull(self, digest: str, target: Folder, progress: Progress = no_progress) -> ModelArtifact:
        """Bring an artifact into a folder, every byte hashed on the way; the manifest comes last
        there, too.

        Raises:
            ArtifactDamaged: the store has something else than the manifest says; nothing becomes
                visible.
            TransferError: it broke off; files that have arrived are kept.
        """
        ...

    def touch(self, digest: str) -> None:
        """Make an artifact and its blobs young again, so that a garbage collection beside us spares
        them."""
        ...

    def inventory(self, what: What) -> Iterator[Held]:
        """All manifests or blobs, in any order."""
        ...

    def discard(self, what: What, name: str, *, unless_after: float) -> bool:
        """Remove a manifest (with whatever view of it there is) or a blob; False if it was written
        or touched after that time."""
        ...

    def collecting(self) -> AbstractContextManager[None]:
        """Held by the one process that collects garbage.

        Raises:
            StoreBusy: somebody else does, or (a folder) writes to the store and does not finish.
        """
        ...

    def clear_leftovers(self, *, older_than: float) -> int:
        """Give up uploads that nobody goes on with since that time (Unix time); returns how
        many."""
        ...
