"""`lmflows registry gc`, `pull`, `push` and `verify`: the artifacts in the store behind the
stages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from artifacts.registry.refs import Ref, Registry
from artifacts.store.ancestors import lineage, push_lineage
from artifacts.store.local import LocalStore
from artifacts.store.protocol import Store
from artifacts.store.signatures import carry_signatures
from configs import paths
from configs.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    ConfigError,
    LmflowsError,
    UnsafeManifest,
)
from configs.location import S3
from configs.policy import load_policy
from configs.units import mb
from flows.cli.registry_names import AsJson, StoreAt, digest_of, opened, refs_named
from flows.cli.terminal import moving_progress, say, say_err, show_rows
from flows.run.lookup import resolve

# a promotion makes young what it needs, reads all of it, and only then writes the ref
SAFE_HOURS = 1

Delete = Annotated[bool, typer.Option("--delete", help="do it; without, only say what would go")]
Keep = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", help="entries of each stage's history to keep; else the policy's"
    ),
]
MinAge = Annotated[
    float | None, typer.Option(min=0, help="leave alone what is younger; else the policy's")
]
Forget = Annotated[
    list[str] | None,
    typer.Option(metavar="MACHINE/ENDPOINT", help="is gone for good with its machine"),
]


def gc(
    delete: Delete = False,
    keep: Keep = None,
    min_age_hours: MinAge = None,
    forget: Forget = None,
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Remove artifacts that no stage, no history and no endpoint on any machine needs. Without
    --delete nothing is removed."""
    from artifacts.registry import garbage
    from flows.cli import registry_show

    place = opened(store)
    policy = load_policy()
    history = policy.keep_history if keep is None else keep
    hours = policy.min_age_hours if min_age_hours is None else min_age_hours
    if place.location.startswith(S3) and hours < SAFE_HOURS:
        say_err(
            f"with less than {SAFE_HOURS} hour nobody may promote in {place.location} at the same"
            " time"
        )
    plan = garbage.plan(place, keep_history=history, min_age_hours=hours, forget=forget or ())
    done = None
    if delete:
        with moving_progress("collecting") as progress:
            done = garbage.collect(
                place,
                keep_history=history,
                min_age_hours=hours,
                forget=forget or (),
                progress=progress,
            )
    if as_json:
        print(json.dumps(registry_show.collection_facts(place, plan, done), indent=2))
    else:
        registry_show.print_collection(plan, done)


def pull(
    what: Annotated[str, typer.Argument(metavar="DIGEST|MODEL/STAGE")],
    to: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="a store folder; else this machine's workspace"),
    ] = None,
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Bring an artifact from the store to this machine, every byte hashed on the way, and print its
    folder."""
    place = opened(store)
    digest = digest_of(place, what)
    target = LocalStore(to or paths.workspace())
    with moving_progress(f"pulling {digest[:12]}") as progress:
        artifact = place.pull(digest, target, progress)
        carry_signatures(place, target, digest)
    if as_json:
        print(json.dumps({"digest": digest, "kind": artifact.kind, "path": str(artifact.path)}))
    else:
        say(str(artifact.path))


def push(
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="of an artifact on this machine")],
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Send an artifact with all that it comes from to the store; what is there already is not sent
    again."""
    place = opened(store, new=True)
    source, full = resolve(digest)
    with moving_progress(f"pushing {full[:12]}") as progress:
        order, sent = push_lineage(source, place, [full], progress)
    if as_json:
        answer = {
            "digest": full,
            "artifacts": order,
            "sent_bytes": sent,
            "store": place.location,
        }
        print(json.dumps(answer))
    else:
        say(
            f"{full[:12]} and the {len(order) - 1} artifacts that it comes from are in"
            f" {place.location}; {mb(sent)} were sent"
        )


def verify(
    what: Annotated[str | None, typer.Argument(metavar="[DIGEST|MODEL/STAGE]")] = None,
    every: Annotated[bool, typer.Option("--all", help="every artifact of the store")] = False,
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Hash every file where it lies; status 1 if one is changed, missing or extra.

    Without an argument: all that the stages serve, with its reports, evidence and ancestors."""
    place = opened(store)
    if what and every:
        raise ConfigError(
            "one artifact, or all of them?",
            where="lmflows registry verify",
            hint=f"give {what} or --all",
        )
    refs = refs_to_verify(place, what)
    if every:
        digests = place.digests()
    elif what is not None and "/" not in what:
        digests = [digest_of(place, what)]
    else:
        digests = served_by(refs)
    problems: dict[str, list[str]] = {}
    with moving_progress("verifying") as progress:
        if not every and refs:
            digests, problems = with_ancestors(place, digests)
        for number, digest in enumerate(digests):
            progress(number / len(digests), digest[:12])
            problems.setdefault(digest, []).extend(problems_of(place, digest))
    rows = [
        {"digest": digest if as_json else digest[:12], "problem": problem}
        for digest, found in problems.items()
        for problem in dict.fromkeys(found)
    ]
    if as_json:
        print(json.dumps({"artifacts": digests, "refs": len(refs), "problems": rows}, indent=2))
    else:
        show_rows(rows, False, f"{len(digests)} artifacts, all as in their manifests")
    if rows:
        raise typer.Exit(1)


def refs_to_verify(store: Store, what: str | None) -> list[Ref]:
    """The refs that are meant; parsing them checks them."""
    if what is None:
        return Registry(store.objects).refs()
    return refs_named(store, what) if "/" in what else []


def served_by(refs: Sequence[Ref]) -> list[str]:
    """The artifacts that stages point to, and the reports that let them."""
    entries = [ref.current for ref in refs if ref.current]
    return sorted({digest for entry in entries for digest in (entry.digest, entry.report)})


def with_ancestors(store: Store, digests: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The digests and all their ancestors that can be read; and by digest why some cannot."""
    found: dict[str, None] = {}
    problems: dict[str, list[str]] = {}
    for digest in digests:
        try:
            found |= dict.fromkeys(lineage(store, [digest]))
        except LmflowsError as error:
            found[digest] = None
            problems.setdefault(digest, []).append(f"{error.where}: {error.message}")
    return list(found), problems


def problems_of(store: Store, digest: str) -> list[str]:
    """What `verify` finds, an unreadable manifest among it."""
    try:
        return [str(problem) for problem in store.verify(digest)]
    except (ArtifactDamaged, ArtifactMissing, UnsafeManifest) as error:
        return [f"{error.where}: {error.message}"]
