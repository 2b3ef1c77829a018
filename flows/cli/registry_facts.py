"""What there is to say about what a stage serves, or about any artifact: facts for `lmflows
registry show`, as JSON has them."""

from __future__ import annotations

from typing import Any

from artifacts.records.report import VERDICT, Verdict
from artifacts.registry import serving
from artifacts.registry.lineage import about, tree
from artifacts.registry.refs import Ref
from artifacts.store.protocol import Store
from configs.errors import LmflowsError
from flows.cli.terminal import say_err


def verdict_of(store: Store, report: str) -> Verdict | str:
    """The verdict of a report artifact, or why it cannot be read."""
    try:
        return Verdict.model_validate_json(store.read(report, VERDICT))
    except LmflowsError as error:
        return error.message
    except ValueError:
        return "not a verdict"


def served(store: Store, ref: Ref) -> dict[str, Any]:
    """What a stage serves, why it may, and the tree of its report, in which the artifact and the
    evidence are."""
    entry = ref.current
    assert entry is not None
    verdict = verdict_of(store, entry.report)
    outcome = None
    reasons = [f"report {entry.report[:12]} cannot be read: {verdict}"]
    if isinstance(verdict, Verdict):
        outcome = verdict.outcome
        reasons = list(verdict.reasons)
    return {
        "model": ref.model,
        "stage": ref.stage,
        "number": len(ref.entries) - 1,
        **entry.model_dump(mode="json"),
        "rollback_to": None if ref.previous is None else ref.entries[ref.previous].digest,
        "outcome": outcome,
        "reasons": reasons,
        "endpoints": endpoints_of(store, entry.digest),
        "lineage": _tree_of_either(store, entry.report, entry.digest),
    }


def lineage_of(store: Store, digest: str) -> dict[str, Any]:
    """The tree of an artifact, which endpoints serve it, and who names it as a parent."""
    return {
        "lineage": tree(store, digest).to_dict(),
        "endpoints": endpoints_of(store, digest),
        "about": [mention.to_dict() for mention in about(store, digest)],
    }


def endpoints_of(store: Store, digest: str) -> list[dict[str, str]]:
    """Which endpoints have announced that they serve an artifact; if that cannot be read, standard
    error says why."""
    try:
        announced = serving.everywhere(store)
    except LmflowsError as error:
        say_err(str(error))
        return []
    return [
        endpoint.model_dump(mode="json", exclude={"digest"})
        for endpoint in announced
        if endpoint.digest == digest
    ]


def _tree_of_either(store: Store, report: str, artifact: str) -> dict[str, Any] | None:
    """The tree of the report, else of the artifact, else nothing; standard error says why."""
    for digest in (report, artifact):
        try:
            return tree(store, digest).to_dict()
        except LmflowsError as error:
            say_err(str(error))
    return None
