"""What `lmflows registry` shows: rows of tables, the facts of what is served, and the tree of where
it comes from."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from artifacts.records.report import VERDICT, Verdict
from artifacts.registry import serving
from artifacts.registry.garbage import Collected, Plan
from artifacts.registry.lineage import about, tree
from artifacts.registry.refs import Ref
from artifacts.store.protocol import Store
from configs.errors import LmflowsError
from configs.units import mb
from flows.cli.terminal import err, out, show_rows

MENTIONS = 12  # of those that name an artifact as their parent, in a printed answer


def refs(store: Store, known: Iterable[Ref], *, full: bool) -> list[dict[str, Any]]:
    """One row for each stage that points to something."""
    rows = []
    for ref in known:
        if (entry := ref.current) is None:
            continue
        verdict = verdict_of(store, entry.verdict)
        ratio = (
            verdict.difference.ratio[0]
            if isinstance(verdict, Verdict) and verdict.difference
            else None
        )
        outcome = verdict.outcome if isinstance(verdict, Verdict) else f"unreadable: {verdict}"
        row: dict[str, Any] = {
            "model": ref.model,
            "stage": ref.stage,
            "digest": entry.digest,
            "variant": entry.variant,
            "engine": entry.engine,
        }
        if full:
            row |= {
                "outcome": outcome,
                "perplexity_ratio": ratio,
                "number": len(ref.entries) - 1,
                **entry.model_dump(mode="json", exclude=set(row)),
            }
        else:
            row |= {
                "digest": entry.digest[:12],
                "verdict": outcome,
                "perplexity": "" if ratio is None else f"x {ratio:.4f}",
                "who": entry.who,
                "when": f"{entry.when:%Y-%m-%d %H:%M} UTC",
                "why": entry.why,
            }
        rows.append(row)
    return rows


def artifacts(store: Store, known: Iterable[Ref], *, full: bool) -> list[dict[str, Any]]:
    """One row for each artifact, oldest first; what cannot be read is told on standard error."""
    stages: dict[str, list[str]] = {}
    for ref in known:
        if ref.current:
            stages.setdefault(ref.current.digest, []).append(f"{ref.model}/{ref.stage}")
    rows = []
    for digest in store.digests():
        try:
            manifest = store.manifest(digest)
        except LmflowsError as error:
            err.print(str(error), markup=False, highlight=False, soft_wrap=True)
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
                    else ", ".join(
                        f"{parent.role} {parent.digest[:12]}" for parent in manifest.parents
                    )
                ),
            }
        )
    return rows


def entries(ref: Ref, *, full: bool) -> list[dict[str, Any]]:
    """One row for each entry of a history, oldest first; for people without the columns that nobody
    has filled."""
    rows: list[dict[str, Any]] = []
    for number, entry in enumerate(ref.entries):
        if full:
            rows.append(
                {
                    "number": number,
                    "current": number == len(ref.entries) - 1,
                    **entry.model_dump(mode="json"),
                }
            )
        else:
            rows.append(
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
            )
    empty = (
        []
        if full
        else [
            column
            for column in ("forced", "approved by", "back to")
            if all(row[column] == "" for row in rows)
        ]
    )
    return [{column: value for column, value in row.items() if column not in empty} for row in rows]


def verdict_of(store: Store, report: str) -> Verdict | str:
    """The verdict of a report artifact, or why it cannot be read."""
    try:
        return Verdict.model_validate_json(store.read(report, VERDICT))
    except LmflowsError as error:
        return error.message
    except ValueError:
        return "not a verdict"


# -- one thing, and where it comes from


def served(store: Store, ref: Ref) -> dict[str, Any]:
    """What a stage serves, why it may, and the tree of its report, in which the artifact and the
    evidence are."""
    entry = ref.current
    assert entry is not None
    verdict = verdict_of(store, entry.verdict)
    told: dict[str, Any] = {
        "model": ref.model,
        "stage": ref.stage,
        "number": len(ref.entries) - 1,
        **entry.model_dump(mode="json"),
        "rollback_to": None if ref.previous is None else ref.entries[ref.previous].digest,
    }
    if isinstance(verdict, Verdict):
        told |= {"outcome": verdict.outcome, "reasons": list(verdict.reasons)}
    else:
        told |= {
            "outcome": None,
            "reasons": [f"report {entry.verdict[:12]} cannot be read: {verdict}"],
        }
    told |= {"endpoints": endpoints_of(store, entry.digest)}
    return told | lineage_of(store, entry.verdict, mentions=False, otherwise=entry.digest)


def endpoints_of(store: Store, digest: str) -> list[dict[str, str]]:
    """Which endpoints have announced that they serve an artifact; if that cannot be read, standard
    error says why."""
    try:
        found = serving.everywhere(store)
    except LmflowsError as error:
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return []
    return [
        one.model_dump(mode="json", exclude={"digest"}) for one in found if one.digest == digest
    ]


def lineage_of(
    store: Store, digest: str, *, mentions: bool = True, otherwise: str | None = None
) -> dict[str, Any]:
    """The tree of an artifact, and who names it as a parent; `otherwise`: whose tree, if there is
    none of the first."""
    try:
        found = tree(store, digest).to_dict()
    except LmflowsError as error:
        if otherwise is None:
            raise
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        try:
            found = tree(store, otherwise).to_dict()
        except LmflowsError as other:
            err.print(str(other), markup=False, highlight=False, soft_wrap=True)
            return {"lineage": None}
    if not mentions:
        return {"lineage": found}
    return {
        "lineage": found,
        "endpoints": endpoints_of(store, digest),
        "about": [mention.to_dict() for mention in about(store, digest)],
    }


def print_told(told: list[dict[str, Any]] | dict[str, Any]) -> None:
    """What `served` and `lineage_of` tell, for people."""
    for number, one in enumerate(told if isinstance(told, list) else [told]):
        if number:
            out.print()
        if "stage" in one:
            _print_served(one)
        elif one.get("endpoints"):
            out.print(_endpoints(one), highlight=False, soft_wrap=True)
        if one["lineage"]:
            out.print(_branch(one["lineage"]), highlight=False)
        if mentions := one.get("about"):
            rows = [
                {
                    "named by": mention["digest"][:12],
                    "kind": mention["kind"],
                    "as its": mention["role"],
                    "says": " ".join(
                        filter(None, [mention["facts"]["verdict"], mention["facts"]["variant"]])
                    ),
                }
                for mention in mentions
            ]
            out.print()
            show_rows(rows[:MENTIONS], False, "")
            if len(rows) > MENTIONS:
                out.print(f"and {len(rows) - MENTIONS} more: --json has them all")


def _print_served(one: dict[str, Any]) -> None:
    lines = [
        (
            f"[bold]{one['model']}/{one['stage']}[/] {one['digest'][:12]} as"
            f" {escape(one['variant'])} on {escape(one['engine'])}"
        ),
        (
            f"  {one['action']} by {escape(one['who'])} at {one['when'][:16].replace('T', ' ')}"
            f" UTC: {escape(one['why'])} (entry {one['number']})"
        ),
    ]
    lines += [
        f"  {label}: {escape(str(one[key]))}"
        for label, key in (("forced", "forced"), ("approved by", "approved_by"))
        if one[key]
    ]
    lines.append(f"  verdict {one['outcome'] or 'unreadable'}: {escape('; '.join(one['reasons']))}")
    lines.append(
        "  a rollback goes to"
        f" {one['rollback_to'][:12] if one['rollback_to'] else 'nothing: it had nothing before'}"
    )
    out.print("\n".join([*lines, f"  {_endpoints(one)}"]), highlight=False, soft_wrap=True)


def _endpoints(one: dict[str, Any]) -> str:
    found = [
        f"{end['endpoint']} on {end['machine']} since {end['since'][:16].replace('T', ' ')} UTC"
        for end in one["endpoints"]
    ]
    return f"served by endpoint {escape(', '.join(found))}" if found else "no endpoint serves it"


def _branch(node: dict[str, Any]) -> Tree:
    """A node of `artifacts.registry.lineage` as a tree that a person can read; what comes from
    outside is never markup."""
    facts = node["facts"]
    title = f"{escape(node['role'])}: " if node["role"] else ""
    if node["missing"]:
        return Tree(f"{title}{node['digest'][:12]} [red]{escape(node['missing'])}[/]")
    title += f"[bold]{node['kind']}[/] {node['digest'][:12]}"
    if node["again"] or node["cut"]:
        return Tree(f"{title} {'(above)' if node['again'] else '(and so on)'}")
    title += f"  {mb(node['size'])}, {node['files']} file{'s' * (node['files'] != 1)}"
    said = [
        facts["verdict"],
        facts["variant"],
        *(f"{key} {value}" for key, value in facts["hardware"].items()),
        *(f"{key} {value}" for key, value in facts["versions"].items()),
    ]
    lines = [
        title,
        f"[dim]{escape(', '.join(filter(None, said)))}[/]" if any(said) else "",
        (
            "[dim]"
            + escape(", ".join(f"{key}: {value}" for key, value in node["recipe"].items()))
            + "[/]"
            if node["recipe"]
            else ""
        ),
        f"[red]{escape(facts['damage'])}[/]" if facts["damage"] else "",
    ]
    branch = Tree("\n".join(filter(None, lines)))
    branch.children.extend(_branch(parent) for parent in node["parents"])
    return branch


# -- garbage


def print_collection(store: Store, plan: Plan, done: Collected | None, as_json: bool) -> None:
    """What goes, or has gone if `done` says so."""
    if as_json:
        print(
            json.dumps(
                {
                    "store": store.location,
                    "deleted": done is not None,
                    "artifacts": [
                        {
                            "digest": held.name,
                            "kind": plan.kinds[held.name],
                            "modified": held.modified,
                        }
                        for held in plan.manifests
                    ],
                    "blobs": [held.name for held in plan.blobs],
                    "signatures": list(plan.signatures),
                    "bytes": plan.freed,
                    "kept": plan.kept,
                    "done": None if done is None else asdict(done),
                },
                indent=2,
            )
        )
        return
    rows = [
        {
            "artifact": held.name[:12],
            "kind": plan.kinds[held.name],
            "age": f"{(time.time() - held.modified) / 86400:.1f} days",
        }
        for held in plan.manifests
    ]
    if rows:
        show_rows(rows, False, "")
    kept = f"{len(plan.kept)} artifacts are needed or young"
    if done is None:
        text = (
            f"{len(plan.manifests)} artifacts and {len(plan.blobs)} files ({mb(plan.freed)}) would"
            f" go; {kept}. Nothing was removed: --delete does it"
        )
    else:
        spared = (
            f"; {len(done.spared)} were spared, for somebody needs them now" if done.spared else ""
        )
        text = (
            f"{done.manifests} artifacts and {done.blobs} files ({mb(done.freed)}) are"
            f" gone{spared}; {kept}"
        )
    out.print(text, markup=False, highlight=False, soft_wrap=True)
