"""What every store can do, wherever it lies: a folder (`artifacts.store.local`) or an S3 prefix
(`artifacts.store.s3.store`), same layout.

An artifact exists when its manifest does. Pushing writes blobs first and the manifest last, so a
half sent artifact is never visible; collecting garbage removes the manifest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from artifacts.manifest import Manifest, ModelArtifact
from artifacts.store.objects import Objects
from configs.callbacks import Progress, no_progress
from configs.errors import ArtifactMissing
from configs.location import S3, parse_s3

if TYPE_CHECKING:
    from artifacts.store.local import LocalStore

SIGNATURES = "signatures/"
What = Literal["manifests", "blobs"]


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

    def push(self, source: LocalStore, digest: str, progress: Progress = no_progress) -> int:
        """Take an artifact over from a folder; returns the bytes that were sent. What is there
        already is not sent again.

        Raises:
            ArtifactDamaged: the source is not what its manifest says; nothing becomes visible.
            TransferError: it broke off; what was sent is kept for the next attempt, and nothing is
                visible.
        """
        ...

    def pull(
        self, digest: str, target: LocalStore, progress: Progress = no_progress
    ) -> ModelArtifact:
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


def open_store(location: str) -> Store:
    """The store at a location (`configs.location`). Nothing is read or asked yet."""
    if location.startswith(S3):
        # boto3 takes half a second, and most commands need none
        from artifacts.store.s3.store import S3Store

        return S3Store(parse_s3(location))
    from artifacts.store.local import LocalStore

    return LocalStore(Path(location))


def match(
    prefix: str, known: Iterable[str], *, where: str, hint: str = "`lmflows ls` shows what there is"
) -> str:
    """The one digest that starts with `prefix` (at least 6 hex digits).

    Raises:
        ArtifactMissing: none does, or more than one.
    """
    digits = prefix.removeprefix("sha256:")
    if len(digits) < 6:
        raise ArtifactMissing(
            f"{prefix!r} is too short to name an artifact",
            where=where,
            hint="give at least 6 digits",
        )
    found = sorted({digest for digest in known if digest.startswith(digits)})
    if len(found) != 1:
        what = f"{len(found)} artifacts start with" if found else "no artifact starts with"
        raise ArtifactMissing(f"{what} {prefix!r}", where=where, hint=hint)
    return found[0]


def lineage(store: Store, digests: Iterable[str]) -> list[str]:
    """The digests and all their ancestors, ancestors first, each once."""
    order: dict[str, None] = {}
    seen: set[str] = set()
    stack = [(digest, False) for digest in reversed(list(digests))]
    while stack:  # a loop, not a recursion: a manifest from outside may be the last of ten thousand
        digest, below_is_done = stack.pop()
        if below_is_done:
            order[digest] = None
        elif digest not in seen:
            seen.add(digest)
            stack.append((digest, True))
            stack += [(parent.digest, False) for parent in reversed(store.manifest(digest).parents)]
    return list(order)


def push_lineage(
    source: LocalStore, target: Store, digests: Iterable[str], progress: Progress = no_progress
) -> tuple[list[str], int]:
    """Push artifacts and all their ancestors, these first, with their signatures: nothing in the
    target ever names what is not there.

    Returns their digests in that order, and the bytes that were sent.
    """
    order, sent = lineage(source, digests), 0
    for number, digest in enumerate(order):
        what = f"{source.manifest(digest).kind} {digest[:12]}"

        def tell(fraction: float, _file: str, number: int = number, what: str = what) -> None:
            progress((number + fraction) / len(order), what)

        sent += target.push(source, digest, tell)
        carry_signatures(source, target, digest)
    return order, sent


def carry_signatures(source: Store, target: Store, digest: str) -> None:
    """Copy the signatures of an artifact that both stores have; whether one holds is asked when it
    matters (`artifacts.registry.signing.check`)."""
    there = (
        set(target.objects.keys(signatures_of(digest)))
        if (keys := source.objects.keys(signatures_of(digest)))
        else set()
    )
    for key in keys:
        if key not in there and (found := source.objects.get(key)):
            target.objects.put(key, found[0])  # its name is its hash


def signatures_of(digest: str) -> str:
    """What the keys of an artifact's signatures start with; the rest is the sha256 of the signature
    file."""
    return f"{SIGNATURES}{digest}/"
