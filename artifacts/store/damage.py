"""The error for an artifact of a folder that is not what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from artifacts.manifest import FileEntry
from artifacts.store.protocol import Problem, Source
from configs.errors import ArtifactDamaged


def damaged(source: Source, digest: str, *problems: Problem) -> ArtifactDamaged:
    """The error that names every problem, and what to do about them."""
    return ArtifactDamaged(
        "; ".join(map(str, problems)),
        where=f"artifact {digest[:12]} in {source.location}",
        hint="run the pipeline again: the step that made it will be repeated",
    )


@contextmanager
def missing_is_damage(source: Source, digest: str, entry: FileEntry) -> Iterator[None]:
    """Turn a FileNotFoundError, which can only be about the blob of that file, into
    ArtifactDamaged."""
    try:
        yield
    except FileNotFoundError:
        raise damaged(source, digest, Problem("missing", entry.path)) from None
