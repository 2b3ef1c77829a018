"""`lmflows registry`: which artifact each stage of each model serves, who may change it, and what
the store holds."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from artifacts.registry.refs import STAGES, Decision, Ref, Registry
from configs.errors import ConfigError, PromotionRefused
from configs.policy import load_policy
from flows.cli import registry_store
from flows.cli.commands import add_command
from flows.cli.registry_names import (
    AsJson,
    StoreAt,
    digest_of,
    opened,
    points_to_nothing,
    ref_of,
    refs_named,
)
from flows.cli.terminal import moving_progress, say_err, show_rows
from flows.run.lookup import whoami

app = typer.Typer(
    no_args_is_help=True,
    help="Stages of models: promote, roll back, look at them; and the store that they lie in.",
)

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
ToStage = Annotated[str, typer.Argument(metavar="TO_STAGE", help=", ".join(STAGES))]
DigestOrStage = Annotated[
    str, typer.Argument(metavar="DIGEST|STAGE", help="an artifact, or the stage that has it")
]
Force = Annotated[
    str | None,
    typer.Option(
        metavar="REASON", help="leave out the stage before; the reason goes into the history"
    ),
]
VariantName = Annotated[str | None, typer.Option(help="that will be served, for example w4a16-kv8")]
EngineName = Annotated[str | None, typer.Option(help="that will serve it")]
Report = Annotated[
    str | None,
    typer.Option(metavar="DIGEST", help="with the verdict; else the newest with a PASS"),
]
BackTo = Annotated[
    str | None, typer.Option(metavar="DIGEST", help="of its history; else what it had before")
]
AllArtifacts = Annotated[
    bool, typer.Option("--artifacts", help="every artifact of the store, oldest first")
]


def ls(artifacts: AllArtifacts = False, store: StoreAt = None, as_json: AsJson = False) -> None:
    """List what each stage of each model serves."""
    from flows.cli import registry_tables

    place = opened(store)
    refs = Registry(place.objects).refs()
    if artifacts:
        rows = registry_tables.artifacts(place, refs, full=as_json)
        show_rows(rows, as_json, f"no artifacts in {place.location}")
    else:
        rows = registry_tables.refs(place, refs, full=as_json)
        show_rows(rows, as_json, f"nothing is promoted in {place.location}")


def show(
    what: Annotated[str, typer.Argument(metavar="MODEL[/STAGE]|DIGEST")],
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Show what a stage serves, why it may, and what it was made from; or the same of any
    artifact."""
    from artifacts.store.find import find
    from flows.cli import registry_facts, registry_show

    place = opened(store)
    refs = [ref for ref in refs_named(place, what) if ref.current]
    if not refs and "/" in what:
        raise points_to_nothing(what)
    facts: Any
    if refs:
        facts = [registry_facts.served(place, ref) for ref in refs]
    else:
        facts = registry_facts.lineage_of(place, find(place, what))
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        registry_show.print_facts(facts)


def history(model: Model, stage: AStage, store: StoreAt = None, as_json: AsJson = False) -> None:
    """List every change of a stage, oldest first."""
    from flows.cli import registry_tables

    ref = ref_of(opened(store), model, stage)
    show_rows(
        registry_tables.entries(ref, full=as_json),
        as_json,
        f"{model}/{stage} never pointed to anything",
    )


def promote(
    model: Model,
    what: DigestOrStage,
    to_stage: ToStage,
    why: Why = "by hand",
    force: Force = None,
    expect: Expect = None,
    variant: VariantName = None,
    engine: EngineName = None,
    report: Report = None,
    yes: Yes = False,
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Point a stage at an artifact with a PASS: dev, then staging, then production."""
    from artifacts.registry.change import require_no_problem
    from artifacts.registry.promotion import promote as promote_in
    from artifacts.registry.proposal import Proposal
    from flows.cli import registry_show

    place = opened(store)
    policy = load_policy()
    ref = ref_of(place, model, to_stage)
    source = ref_of(place, model, what).current if what in STAGES else None
    if source:  # what is shown and confirmed, though that stage may move meanwhile
        what = source.digest
        report = report or source.report
        variant = variant or source.variant
        engine = engine or source.engine
    expect = confirmed(
        ref, expect, f"{what[:12]} is to be promoted to it in {place.location}", yes=yes
    )
    proposal = Proposal(
        model=model,
        to_stage=ref.stage,
        what=what,
        variant=variant,
        engine=engine,
        report=report,
        expect=expect,
        force=force,
    )
    with moving_progress(f"promoting to {model}/{to_stage}") as progress:
        done = promote_in(place, proposal, Decision(whoami(), why), policy, progress)
    registry_show.print_move(done.ref, done.before, done.now, done.moved, as_json)
    require_no_problem(f"{model}/{ref.stage}", done.problem)


def rollback(
    model: Model,
    stage: AStage,
    to: BackTo = None,
    why: Why = "by hand",
    expect: Expect = None,
    yes: Yes = False,
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Point a stage back at what it had before. Needs no new evidence; done again, it goes further
    back."""
    from artifacts.registry.change import require_no_problem
    from artifacts.registry.rollback import Rollback, roll_back
    from flows.cli import registry_show

    place = opened(store)
    policy = load_policy()
    ref = ref_of(place, model, stage)
    expect = confirmed(
        ref,
        expect,
        f"it is to go back to {to or 'what it had before'} in {place.location}",
        yes=yes,
    )
    wanted = Rollback(model, ref.stage, to=to, expect=expect)
    done = roll_back(place, wanted, Decision(whoami(), why), policy)
    registry_show.print_move(done.ref, done.before, done.now, done.moved, as_json)
    require_no_problem(f"{model}/{ref.stage}", done.problem)


def sign(
    what: Annotated[str, typer.Argument(metavar="DIGEST|MODEL/STAGE")],
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Sign an artifact with the key or certificate that the policy names; of MODEL/STAGE its
    report, too, which holds the verdict."""
    from artifacts.registry import signing

    place = opened(store)
    signer = load_policy().sign
    if signer is None:
        raise ConfigError(
            "names no key to sign with",
            where="policy: sign",
            hint="configs/policy.example.yaml shows how",
        )
    refs = refs_named(place, what) if "/" in what else []
    digests = [digest_of(place, what), *(ref.current.report for ref in refs if ref.current)]
    rows = [
        {
            "digest": digest if as_json else digest[:12],
            "signature": signing.sign(place, digest, signer),
        }
        for digest in digests
    ]
    show_rows(rows, as_json, "")


# in the order in which `--help` lists them
add_command(app, ls)
add_command(app, show)
add_command(app, history)
add_command(app, promote)
add_command(app, rollback)
add_command(app, registry_store.gc)
add_command(app, registry_store.pull)
add_command(app, registry_store.push)
add_command(app, registry_store.verify)
add_command(app, sign)


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
    say_err(f"{ref.model}/{ref.stage} points to {now[:12]}; {change}.")
    typed = typer.prompt(
        "Type the model's name to confirm", default="", show_default=False, err=True
    )
    if typed.strip() != ref.model:
        raise PromotionRefused(
            "was not confirmed",
            where=f"{ref.model}/{ref.stage}",
            hint="type the model's name exactly",
        )
    return expect or now  # what was shown: it may have moved while somebody typed
