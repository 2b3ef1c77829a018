"""What a promotion or a rollback has led to."""

from __future__ import annotations

from dataclasses import dataclass

from artifacts.registry.refs import Ref, RefEntry, Served
from artifacts.store.protocol import Store
from configs.errors import ArtifactMissing, LmflowsError


@dataclass(frozen=True)
class StageChange:
    """What a promotion or a rollback has led to.

    Attributes:
        ref: as it is now, with its whole history.
        before: what the stage pointed to; None if to nothing.
        now: what it points to.
        moved: False if it pointed there already, for the same reasons, and nothing was written.
        problem: what is wrong although the stage was moved: a garbage collection at the same time
            has removed what it points to, or that could not be asked.
    """

    ref: Ref
    before: RefEntry | None
    now: RefEntry
    moved: bool
    problem: str | None = None


def moved(store: Store, ref: Ref, before: RefEntry | None) -> StageChange:
    """A change that was just written."""
    now = ref.entries[-1]
    return StageChange(ref, before, now, moved=True, problem=_problem_since(store, now.served))


def _problem_since(store: Store, served: Served) -> str | None:
    """What is wrong with what a stage was just pointed to. The stage was moved: whatever is found
    must not be reported as a move that failed."""
    try:
        gone = [digest[:12] for digest in (served.digest, served.report) if not store.has(digest)]
    except LmflowsError as error:
        return f"whether {served.digest[:12]} is still there could not be asked: {error}"
    if not gone:
        return None
    return (
        f"a garbage collection has removed {' and '.join(gone)} at this very moment: `lmflows"
        f" registry push {served.report[:12]}` from a machine that has it, or `lmflows registry"
        " rollback`"
    )


def require_no_problem(where: str, problem: str | None) -> None:
    """Raise ArtifactMissing if something is wrong although a stage was moved. The move must have
    been reported before."""
    if problem:
        raise ArtifactMissing(
            f"the stage was moved, but {problem}",
            where=where,
            hint=f"`lmflows registry verify {where}`",
        )
