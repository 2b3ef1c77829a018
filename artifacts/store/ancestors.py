"""An artifact with all that it comes from: in which order, and the way from a folder to another
store."""

from __future__ import annotations

from collections.abc import Iterable

from artifacts.store.local import LocalStore
from artifacts.store.protocol import Store
from artifacts.store.signatures import carry_signatures
from configs.callbacks import Progress, no_progress


def lineage(store: Store, digests: Iterable[str]) -> list[str]:
    """The digests and all their ancestors, ancestors first, each once.

    Raises:
        ArtifactMissing, ArtifactDamaged, UnsafeManifest: the manifest of one of them cannot be
            read.
    """
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
    order = lineage(source, digests)
    sent = 0
    for number, digest in enumerate(order):
        what = f"{source.manifest(digest).kind} {digest[:12]}"

        def of_all(fraction: float, _file: str, number: int = number, what: str = what) -> None:
            progress((number + fraction) / len(order), what)

        sent += target.push(source, digest, of_all)
        carry_signatures(source, target, digest)
    return order, sent
