"""`lmflows registry`: which artifact each stage of each model serves, who may change it, and what
the store holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from artifacts.registry.refs import STAGES, Ref, RefEntry, Registry, Stage
from artifacts.store.local import LocalStore
from artifacts.store.protocol import (
    Store,
    carry_signatures,
    lineage,
    open_store,
    push_lineage,
)
from configs import paths
from configs.callbacks import Progress, no_progress
from configs.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    ConfigError,
    LmflowsError,
    PromotionRefused,
    UnsafeManifest,
)
from configs.location import S3, normal
from configs.policy import load_policy
from configs.units import mb
from flows.cli.terminal import err, out, show_rows
from flows.run.lookup import resolve, whoami

app = typer.Typer(
    no_args_is_help=True,
    help="Stages of models: promote, roll back, look at them; and the store that they lie in.",
)

StoreAt = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="LOCATION",
        help="a folder or s3://BUCKET/PREFIX; else the policy's, else this machine's",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="for a program")]
Model = Annotated[str, typer.Argument(metavar="MODEL")]
AStage = Annotated[str, typer.Argument(metavar="STAGE", help=", ".join(STAGES))]
Yes = Annotated[bool, typer.Option("--yes", help="production, too, without being asked")]
Why = Annotated[str, typer.Option(help="goes into the history")]
Expect = Annotated[
    str | None,
    typer.Option(
        metavar="DIGEST", help='only if the stage points to this now; "nothing" if to nothing'
    ),
]
# a promotion makes young what it needs, reads all of it, and only then writes the ref
SAFE_HOURS = 1


@app.command()
def ls(
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="every artifact of the store, oldest first")
    ] = False,
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """List what each stage of each model serves."""
    from flows.cli import registry_tables

    place = opened(store)
    refs = Registry(place.objects).refs()
    if artifacts:
        show_rows(
            registry_tables.artifacts(place, refs, full=as_json),
            as_json,
            f"no artifacts in {place.location}",
        )
    else:
        show_rows(
            registry_tables.refs(place, refs, full=as_json),
            as_json,
            f"nothing is promoted in {place.location}",
        )


@app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="MODEL[/STAGE]|DIGEST")],
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Show what a stage serves, why it may, and what it was made from; or the same of any
    artifact."""
    from artifacts.registry.promotion import find
    from flows.cli import registry_tables

    place = opened(store)
    refs = [ref for ref in refs_named(place, what) if ref.current]
    if refs:
        told: Any = [registry_tables.served(place, ref) for ref in refs]
    else:
        if "/" in what:
            raise ArtifactMissing(
                "points to nothing", where=what, hint="`lmflows registry ls` shows what there is"
            )
        told = registry_tables.lineage_of(place, find(place, what))
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        registry_tables.print_told(told)


@app.command()
def history(model: Model, stage: AStage, store: StoreAt = None, as_json: AsJson = False) -> None:
    """List every change of a stage, oldest first."""
    from flows.cli import registry_tables

    ref = ref_of(opened(store), model, stage)
    show_rows(
        registry_tables.entries(ref, full=as_json),
        as_json,
        f"{model}/{stage} never pointed to anything",
    )


@app.command()
def promote(
    model: Model,
    what: Annotated[
        str, typer.Argument(metavar="DIGEST|STAGE", help="an artifact, or the stage that has it")
    ],
    to_stage: Annotated[str, typer.Argument(metavar="TO_STAGE", help=", ".join(STAGES))],
    why: Why = "by hand",
    force: Annotated[
        str | None,
        typer.Option(
            metavar="REASON", help="leave out the stage before; the reason goes into the history"
        ),
    ] = None,
    expect: Expect = None,
    variant: Annotated[
        str | None, typer.Option(help="that will be served, for example w4a16-kv8")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="that will serve it")] = None,
    report: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="with the verdict; else the newest with a PASS"),
    ] = None,
    yes: Yes = False,
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Point a stage at an artifact with a PASS: dev, then staging, then production."""
    from artifacts.registry import promotion

    place, policy = opened(store), load_policy()
    ref = ref_of(place, model, to_stage)
    # what is shown and confirmed, though that stage may move meanwhile
    if what in STAGES and (current := ref_of(place, model, what).current):
        what, report = current.digest, report or current.verdict
        variant, engine = variant or current.variant, engine or current.engine
    expect = confirmed(
        ref, expect, f"{what[:12]} is to be promoted to it in {place.location}", yes=yes
    )
    with progress_of(f"promoting to {model}/{to_stage}") as tell:
        done = promotion.promote(
            place,
            model,
            what,
            ref.stage,
            who=whoami(),
            why=why,
            policy=policy,
            variant=variant,
            engine=engine,
            report=report,
            expect=expect,
            force=force,
            progress=tell,
        )
    tell_promotion(done.ref, done.before, done.now, done.moved, as_json)
    promotion.require_no_problem(f"{model}/{ref.stage}", done.problem)


@app.command()
def rollback(
    model: Model,
    stage: AStage,
    to: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="of its history; else what it had before")
    ] = None,
    why: Why = "by hand",
    expect: Expect = None,
    yes: Yes = False,
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Point a stage back at what it had before. Needs no new evidence; done again, it goes further
    back."""
    from artifacts.registry import promotion

    place, policy = opened(store), load_policy()
    ref = ref_of(place, model, stage)
    expect = confirmed(
        ref,
        expect,
        f"it is to go back to {to or 'what it had before'} in {place.location}",
        yes=yes,
    )
    done = promotion.rollback(
        place, model, ref.stage, to=to, who=whoami(), why=why, policy=policy, expect=expect
    )
    tell_promotion(done.ref, done.before, done.now, done.moved, as_json)
    promotion.require_no_problem(f"{model}/{ref.stage}", done.problem)


@app.command()
def gc(
    delete: Annotated[
        bool, typer.Option("--delete", help="do it; without, only say what would go")
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="entries of each stage's history to keep; else the policy's"
        ),
    ] = None,
    min_age_hours: Annotated[
        float | None, typer.Option(min=0, help="leave alone what is younger; else the policy's")
    ] = None,
    forget: Annotated[
        list[str] | None,
        typer.Option(metavar="MACHINE/ENDPOINT", help="is gone for good with its machine"),
    ] = None,
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Remove artifacts that no stage, no history and no endpoint on any machine needs. Without
    --delete nothing is removed."""
    from artifacts.registry import garbage
    from flows.cli import registry_tables

    place, policy = opened(store), load_policy()
    history = policy.keep_history if keep is None else keep
    hours = policy.min_age_hours if min_age_hours is None else min_age_hours
    if place.location.startswith(S3) and hours < SAFE_HOURS:
        err.print(
            f"with less than {SAFE_HOURS} hour nobody may promote in {place.location} at the same"
            " time",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    plan = garbage.plan(place, keep_history=history, min_age_hours=hours, forget=forget or ())
    done = None
    if delete:
        with progress_of("collecting") as tell:
            done = garbage.collect(
                place, keep_history=history, min_age_hours=hours, forget=forget or (), progress=tell
            )
    registry_tables.print_collection(place, plan, done, as_json)


@app.command()
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
    with progress_of(f"pulling {digest[:12]}") as tell:
        artifact = place.pull(digest, target, tell)
        carry_signatures(place, target, digest)
    if as_json:
        print(json.dumps({"digest": digest, "kind": artifact.kind, "path": str(artifact.path)}))
    else:
        out.print(str(artifact.path), markup=False, highlight=False, soft_wrap=True)


@app.command()
def push(
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="of an artifact on this machine")],
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Send an artifact with all that it comes from to the store; what is there already is not sent
    again."""
    place = opened(store, new=True)
    source, full = resolve(digest)
    with progress_of(f"pushing {full[:12]}") as tell:
        order, sent = push_lineage(source, place, [full], tell)
    if as_json:
        print(
            json.dumps(
                {"digest": full, "artifacts": order, "sent_bytes": sent, "store": place.location}
            )
        )
    else:
        out.print(
            f"{full[:12]} and the {len(order) - 1} artifacts that it comes from are in"
            f" {place.location}; {mb(sent)} were sent",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


@app.command()
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
    # parsing them checks them
    refs = (
        Registry(place.objects).refs()
        if what is None
        else refs_named(place, what)
        if "/" in what
        else []
    )
    if what is not None and "/" not in what:
        wanted = [digest_of(place, what)]
    else:
        wanted = (
            place.digests()
            if every
            else sorted(
                {
                    part
                    for ref in refs
                    if ref.current
                    for part in (ref.current.digest, ref.current.verdict)
                }
            )
        )
    problems: dict[str, list[str]] = {}
    with progress_of("verifying") as tell:
        if not every and refs:
            wanted = ancestry(place, wanted, problems)
        for number, digest in enumerate(wanted):
            tell(number / len(wanted), digest[:12])
            problems.setdefault(digest, []).extend(problems_of(place, digest))
    rows = [
        {"digest": digest if as_json else digest[:12], "problem": problem}
        for digest, found in problems.items()
        for problem in dict.fromkeys(found)
    ]
    if as_json:
        print(json.dumps({"artifacts": wanted, "refs": len(refs), "problems": rows}, indent=2))
    else:
        show_rows(rows, False, f"{len(wanted)} artifacts, all as in their manifests")
    if rows:
        raise typer.Exit(1)


@app.command()
def sign(
    what: Annotated[str, typer.Argument(metavar="DIGEST|MODEL/STAGE")],
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Sign an artifact with the key or certificate that the policy names; of MODEL/STAGE its
    report, too, which holds the verdict."""
    from artifacts.registry import signing

    place, signer = opened(store), load_policy().sign
    if signer is None:
        raise ConfigError(
            "names no key to sign with",
            where="policy: sign",
            hint="configs/policy.example.yaml shows how",
        )
    refs = refs_named(place, what) if "/" in what else []
    digests = [digest_of(place, what), *(ref.current.verdict for ref in refs if ref.current)]
    rows = [
        {
            "digest": digest if as_json else digest[:12],
            "signature": signing.sign(place, digest, signer),
        }
        for digest in digests
    ]
    show_rows(rows, as_json, "")


# -- what the commands share


def opened(location: str | None, *, new: bool = False) -> Store:
    """The store that is meant. `new`: one that does not exist yet is made.

    Raises:
        ConfigError: it cannot be one, or there is no such folder.
    """
    # an unset variable of the shell; the policy's store is meant by not naming one
    if location == "":
        raise ConfigError("is empty", where="--store", hint="name a store, or leave --store out")
    try:
        where = normal(load_policy().store_for(location))
    except ValueError as error:
        raise ConfigError(
            str(error),
            where="the store's location",
            hint="for example /srv/models or s3://bucket/models",
        ) from None
    if location and not new and not where.startswith(S3) and not Path(where).is_dir():
        raise ConfigError(
            "no such folder", where=f"--store {where}", hint="`lmflows registry push` makes a store"
        )
    return open_store(where)


def ref_of(store: Store, model: str, stage: str) -> Ref:
    """A stage of a model; ConfigError if there can be none of these names."""
    from artifacts.registry.promotion import check_names

    check_names(model, stage)
    known: Stage = next(name for name in STAGES if name == stage)
    return Registry(store.objects).read(model, known).ref


def refs_named(store: Store, what: str) -> list[Ref]:
    """MODEL/STAGE, or every stage of MODEL; none if `what` can be no model's name."""
    model, slash, stage = what.partition("/")
    if slash:
        return [ref_of(store, model, stage)]
    try:
        return [ref_of(store, model, stage) for stage in STAGES]
    except ConfigError:
        return []


def digest_of(store: Store, what: str) -> str:
    """The artifact that DIGEST or MODEL/STAGE names."""
    from artifacts.registry.promotion import find

    if "/" not in what:
        return find(store, what)
    [ref] = refs_named(store, what)
    if ref.current is None:
        raise ArtifactMissing(
            "points to nothing", where=what, hint="`lmflows registry ls` shows what there is"
        )
    return ref.current.digest


def confirmed(ref: Ref, expect: str | None, change: str, *, yes: bool) -> str | None:
    """What the stage is expected to point to when it is changed. A change of production at a
    terminal is for somebody to confirm.

    Raises:
        ConfigError: there is nobody to ask, and no --yes.
        PromotionRefused: it was not confirmed.
    """
    if yes or ref.stage != "production":
        return expect
    if not sys.stdin.isatty():
        raise ConfigError(
            "nobody is at a terminal to confirm it",
            where=f"{ref.model}/{ref.stage}",
            hint="give --yes",
        )
    now = ref.current.digest if ref.current else "nothing"
    err.print(
        f"{ref.model}/{ref.stage} points to {now[:12]}; {change}.", markup=False, highlight=False
    )
    if (
        typer.prompt(
            "Type the model's name to confirm", default="", show_default=False, err=True
        ).strip()
        != ref.model
    ):
        raise PromotionRefused(
            "was not confirmed",
            where=f"{ref.model}/{ref.stage}",
            hint="type the model's name exactly",
        )
    return expect or now  # what was shown: it may have moved while somebody typed


def tell_promotion(
    ref: Ref, before: RefEntry | None, now: RefEntry, moved: bool, as_json: bool
) -> None:
    number = len(ref.entries) - 1
    if as_json:
        print(
            json.dumps(
                {
                    "model": ref.model,
                    "stage": ref.stage,
                    "moved": moved,
                    "number": number,
                    "previous": before.digest if before else None,
                    **now.served.model_dump(),
                    "forced": now.forced,
                    "back_to": now.back_to,
                }
            )
        )
        return
    way = (
        f"{before.digest[:12] if before else 'nothing'} -> {now.digest[:12]}"
        if moved
        else f"points to {now.digest[:12]} already"
    )
    out.print(
        f"{ref.model}/{ref.stage}: {way}, {now.variant} on {now.engine} (entry {number})",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def ancestry(store: Store, digests: list[str], problems: dict[str, list[str]]) -> list[str]:
    """The digests and all their ancestors that can be read; what cannot goes into `problems`."""
    found: list[str] = []
    for digest in digests:
        try:
            found += [part for part in lineage(store, [digest]) if part not in found]
        except LmflowsError as error:
            found += [digest] if digest not in found else []
            problems.setdefault(digest, []).append(f"{error.where}: {error.message}")
    return found


def problems_of(store: Store, digest: str) -> list[str]:
    """What `verify` finds, an unreadable manifest among it."""
    try:
        return [str(problem) for problem in store.verify(digest)]
    except (ArtifactDamaged, ArtifactMissing, UnsafeManifest) as error:
        return [f"{error.where}: {error.message}"]


@contextmanager
def progress_of(what: str) -> Iterator[Progress]:
    """A line that moves, where somebody watches."""
    if not err.is_terminal:
        yield no_progress
        return
    with err.status(escape(what)) as status:
        yield lambda fraction, text: status.update(f"{escape(what)}: {fraction:.0%} {escape(text)}")
