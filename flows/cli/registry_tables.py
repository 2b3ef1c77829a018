"""The rows that `lmflows registry` and `lmflows ls` show: stages, artifacts, entries of a history.

`full` rows are for a program (--json): whole digests, numbers, every field. The others are for
people.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from artifacts.manifest import Manifest
from artifacts.records.report import Verdict
from artifacts.registry.refs import Ref, RefEntry
from artifacts.store.protocol import Store
from configs.errors import LmflowsError
from configs.units import mb
from flows.cli.registry_facts import verdict_of
from flows.cli.terminal import say_err

SELDOM = ("forced", "approved by", "back to")  # columns of a history that are often empty


def refs(store: Store, known: Iterable[Ref], *, full: bool) -> list[dict[str, Any]]:
    """One row for each stage that points to something."""
    return [
        _ref_row(store, ref, ref.current, full=full) for ref in known if ref.current is not None
    ]


def _ref_row(store: Store, ref: Ref, entry: RefEntry, *, full: bool) -> dict[str, Any]:
    verdict = verdict_of(store, entry.report)
    outcome = f"unreadable: {verdict}"
    ratio = None
    if isinstance(verdict, Verdict):
        outcome = verdict.outcome
        ratio = verdict.difference.ratio[0] if verdict.difference else None
    row: dict[str, Any] = {
        "model": ref.model,
        "stage": ref.stage,
        "digest": entry.digest if full else entry.digest[:12],
        "variant": entry.variant,
        "engine": entry.engine,
    }
    if full:
        return row | {
            "outcome": outcome,
            "perplexity_ratio": ratio,
            "number": len(ref.entries) - 1,
            **entry.model_dump(mode="json", exclude=set(row)),
        }
    return row | {
        "verdict": outcome,
        "perplexity": "" if ratio is None else f"x {ratio:.4f}",
        "who": entry.who,
        "when": f"{entry.when:%Y-%m-%d %H:%M} UTC",
        "why": entry.why,
    }


def artifacts(store: Store, known: Iterable[Ref], *, full: bool) -> list[dict[str, Any]]:
    """One row for each artifact, oldest first; what cannot be read is told on standard error."""
    stages = stages_by_digest(known)
    rows = []
    for digest in store.digests():
        try:
            manifest = store.manifest(digest)
        except LmflowsError as error:
            say_err(str(error))
            continue
        rows.append(
            {
                "digest": digest if full else digest[:12],
                "kind": manifest.kind,
                "size": manifest.size if full else mb(manifest.size),
                "files": len(manifest.files),
                "stages": ", ".join(stages.get(digest, [])),
                "parents": (
                    [parent.model_dump() for parent in manifest.parents]
                    if full
                    else parents_as_text(manifest)
                ),
            }
        )
    return rows


def stages_by_digest(known: Iterable[Ref]) -> dict[str, list[str]]:
    """MODEL/STAGE of all that point to an artifact, by its digest."""
    stages: dict[str, list[str]] = {}
    for ref in known:
        if ref.current:
            stages.setdefault(ref.current.digest, []).append(f"{ref.model}/{ref.stage}")
    return stages


def parents_as_text(manifest: Manifest) -> str:
    """The parents' roles and digests, for people."""
    return ", ".join(f"{parent.role} {parent.digest[:12]}" for parent in manifest.parents)


def entries(ref: Ref, *, full: bool) -> list[dict[str, Any]]:
    """One row for each entry of a history, oldest first; for people without the columns that nobody
    has filled."""
    if full:
        return [
            {
                "number": number,
                "current": number == len(ref.entries) - 1,
                **entry.model_dump(mode="json"),
            }
            for number, entry in enumerate(ref.entries)
        ]
    rows = [
        {
            "number": number,
            "action": entry.action,
            "digest": entry.digest[:12],
            "variant": entry.variant,
            "engine": entry.engine,
            "who": entry.who,
            "when": f"{entry.when:%Y-%m-%d %H:%M} UTC",
            "why": entry.why,
            "forced": entry.forced or "",
            "approved by": entry.approved_by or "",
            "back to": "" if entry.back_to is None else entry.back_to,
        }
        for number, entry in enumerate(ref.entries)
    ]
    empty = {column for column in SELDOM if all(row[column] == "" for row in rows)}
    return [{column: value for column, value in row.items() if column not in empty} for row in rows]
