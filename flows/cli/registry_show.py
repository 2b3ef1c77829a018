"""What `lmflows registry` prints for people: what is served and where it comes from, how a stage
has moved, and what garbage there is."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from artifacts.registry.garbage import Collected, Plan
from artifacts.registry.refs import Ref, RefEntry
from artifacts.store.protocol import Store
from configs.units import mb
from flows.cli.terminal import out, say, show_table

MENTIONS = 12  # of those that name an artifact as their parent, in a printed answer
SECONDS_A_DAY = 86400


# -- what is served, and where it comes from


def print_facts(facts: list[dict[str, Any]] | dict[str, Any]) -> None:
    """What `registry_facts.served` and `registry_facts.lineage_of` say."""
    for number, subject in enumerate(facts if isinstance(facts, list) else [facts]):
        if number:
            out.print()
        if "stage" in subject:
            _print_served(subject)
        elif subject.get("endpoints"):
            out.print(_endpoints(subject), highlight=False, soft_wrap=True)
        if subject["lineage"]:
            out.print(_branch(subject["lineage"]), highlight=False)
        if subject.get("about"):
            _print_mentions(subject["about"])


def _print_mentions(mentions: list[dict[str, Any]]) -> None:
    rows = []
    for mention in mentions[:MENTIONS]:
        facts = mention["facts"]
        rows.append(
            {
                "named by": mention["digest"][:12],
                "kind": mention["kind"],
                "as its": mention["role"],
                "says": " ".join(filter(None, [facts["verdict"], facts["variant"]])),
            }
        )
    out.print()
    show_table(rows)
    if len(mentions) > MENTIONS:
        out.print(f"and {len(mentions) - MENTIONS} more: --json has them all")


def _print_served(served: dict[str, Any]) -> None:
    stage = f"[bold]{served['model']}/{served['stage']}[/]"
    how = f"{escape(served['variant'])} on {escape(served['engine'])}"
    who = f"{served['action']} by {escape(served['who'])} at {_minute(served['when'])}"
    reasons = escape("; ".join(served["reasons"]))
    back_to = served["rollback_to"]
    back = back_to[:12] if back_to else "nothing: it had nothing before"
    lines = [
        f"{stage} {served['digest'][:12]} as {how}",
        f"  {who}: {escape(served['why'])} (entry {served['number']})",
    ]
    for label, key in (("forced", "forced"), ("approved by", "approved_by")):
        if served[key]:
            lines.append(f"  {label}: {escape(str(served[key]))}")
    lines += [
        f"  verdict {served['outcome'] or 'unreadable'}: {reasons}",
        f"  a rollback goes to {back}",
        f"  {_endpoints(served)}",
    ]
    out.print("\n".join(lines), highlight=False, soft_wrap=True)


def _endpoints(subject: dict[str, Any]) -> str:
    found = [
        f"{end['endpoint']} on {end['machine']} since {_minute(end['since'])}"
        for end in subject["endpoints"]
    ]
    return f"served by endpoint {escape(', '.join(found))}" if found else "no endpoint serves it"


def _minute(when: str) -> str:
    """An ISO time to the minute."""
    return f"{when[:16].replace('T', ' ')} UTC"


def _branch(node: dict[str, Any]) -> Tree:
    """A node of `artifacts.registry.lineage` as a tree that a person can read; what comes from
    outside is never markup."""
    role = f"{escape(node['role'])}: " if node["role"] else ""
    digest = node["digest"][:12]
    if node["missing"]:
        return Tree(f"{role}{digest} [red]{escape(node['missing'])}[/]")
    title = f"{role}[bold]{node['kind']}[/] {digest}"
    if node["again"]:
        return Tree(f"{title} (above)")
    if node["cut"]:
        return Tree(f"{title} (and so on)")
    files = f"{node['files']} file{'s' * (node['files'] != 1)}"
    branch = Tree("\n".join([f"{title}  {mb(node['size'])}, {files}", *_details(node)]))
    branch.children.extend(_branch(parent) for parent in node["parents"])
    return branch


def _details(node: dict[str, Any]) -> list[str]:
    """The lines below a node's first: what it says of itself, its recipe, and its damage."""
    facts = node["facts"]
    words = [
        facts["verdict"],
        facts["variant"],
        *(f"{key} {value}" for key, value in facts["hardware"].items()),
        *(f"{key} {value}" for key, value in facts["versions"].items()),
    ]
    recipe = [f"{key}: {value}" for key, value in node["recipe"].items()]
    lines = []
    if any(words):
        lines.append(f"[dim]{escape(', '.join(filter(None, words)))}[/]")
    if recipe:
        lines.append(f"[dim]{escape(', '.join(recipe))}[/]")
    if facts["damage"]:
        lines.append(f"[red]{escape(facts['damage'])}[/]")
    return lines


# -- a promotion or a rollback


def print_move(
    ref: Ref, before: RefEntry | None, now: RefEntry, moved: bool, as_json: bool
) -> None:
    """How a stage has moved, or that it points there already."""
    number = len(ref.entries) - 1
    if as_json:
        answer = {
            "model": ref.model,
            "stage": ref.stage,
            "moved": moved,
            "number": number,
            "previous": before.digest if before else None,
            **now.served.model_dump(),
            "forced": now.forced,
            "back_to": now.back_to,
        }
        print(json.dumps(answer))
        return
    way = f"points to {now.digest[:12]} already"
    if moved:
        way = f"{before.digest[:12] if before else 'nothing'} -> {now.digest[:12]}"
    say(f"{ref.model}/{ref.stage}: {way}, {now.variant} on {now.engine} (entry {number})")


# -- garbage


def collection_facts(store: Store, plan: Plan, done: Collected | None) -> dict[str, Any]:
    """What goes, or has gone if `done` says so, as JSON has it."""
    return {
        "store": store.location,
        "deleted": done is not None,
        "artifacts": [
            {"digest": held.name, "kind": plan.kinds[held.name], "modified": held.modified}
            for held in plan.manifests
        ],
        "blobs": [held.name for held in plan.blobs],
        "signatures": list(plan.signatures),
        "bytes": plan.freed,
        "kept": plan.kept,
        "done": None if done is None else asdict(done),
    }


def print_collection(plan: Plan, done: Collected | None) -> None:
    """What goes, or has gone if `done` says so."""
    rows = [
        {
            "artifact": held.name[:12],
            "kind": plan.kinds[held.name],
            "age": f"{(time.time() - held.modified) / SECONDS_A_DAY:.1f} days",
        }
        for held in plan.manifests
    ]
    if rows:
        show_table(rows)
    kept = f"{len(plan.kept)} artifacts are needed or young"
    if done is None:
        say(
            f"{len(plan.manifests)} artifacts and {len(plan.blobs)} files ({mb(plan.freed)}) would"
            f" go; {kept}. Nothing was removed: --delete does it"
        )
        return
    spared = ""
    if done.spared:
        spared = f"; {len(done.spared)} were spared, for somebody needs them now"
    say(
        f"{done.manifests} artifacts and {done.blobs} files ({mb(done.freed)}) are gone{spared};"
        f" {kept}"
    )
