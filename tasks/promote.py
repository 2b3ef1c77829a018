"""The promotion steps: check a proposal, sign what has passed, move a stage forward, move it back.
The rules are `artifacts.registry.promotion`'s."""

from __future__ import annotations

from artifacts.manifest import Digest
from artifacts.records.report import Verdict
from artifacts.registry import promotion, signing
from artifacts.registry.refs import ModelName, RefEntry, Stage
from artifacts.store.protocol import open_store
from configs.errors import ConfigError
from configs.location import Location
from configs.policy import Policy
from tasks.runner.step import Context, Request, Result, step


class PromotionRequest(Request):
    """What shall be promoted, where to, and how it will be served.

    Attributes:
        what: an artifact's digest or its first digits, or the stage that has it.
        report: the digest of the report with the verdict; None: that of the stage before, or the
            newest with a PASS.
        variant, engine: what will be served; None: what the evidence is about.
        expect: the digest that the stage is believed to point to, or "nothing".
        force: why the stage before may be left out.
    """

    model: ModelName
    what: str
    to_stage: Stage
    store: Location
    policy: Policy
    report: Digest | None = None
    variant: str | None = None
    engine: str | None = None
    expect: str | None = None
    force: str | None = None


class CheckedResult(Result):
    """A proposal that may be carried out. `parent` and `evidence` are what the report compares and
    rests on; `previous`: what the stage points to now; `new`: whether anything would change."""

    digest: Digest
    report: Digest
    parent: Digest
    evidence: Digest
    variant: str
    engine: str
    verdict: Verdict
    previous: Digest | None
    forced: bool
    new: bool


class PromoteRequest(PromotionRequest):
    who: str
    why: str
    approved_by: str | None = None


class PromoteResult(Result):
    """`moved` is False if the stage pointed there already. `number`: of the entry in the stage's
    history. `problem`: what is wrong although the stage was moved."""

    model: ModelName
    stage: Stage
    digest: Digest
    report: Digest
    previous: Digest | None
    number: int
    moved: bool
    problem: str | None = None


class RollbackRequest(Request):
    """`to`: a digest of the stage's history, or its first digits; None: what was there before the
    last promotion."""

    model: ModelName
    stage: Stage
    store: Location
    policy: Policy
    who: str
    why: str
    to: str | None = None


class SignRequest(Request):
    store: Location
    digests: tuple[Digest, ...]
    policy: Policy


class SignResult(Result):
    """The name of each signature, in the order of the digests."""

    signatures: tuple[str, ...]


@step(child=False, cached=False)
def check_promotion(request: PromotionRequest, context: Context) -> CheckedResult:
    """Hash the artifact in the store and ask whether it may be promoted; nothing is written."""
    store = open_store(request.store)
    proposal = promotion.examine(
        store,
        request.model,
        request.what,
        request.to_stage,
        policy=request.policy,
        variant=request.variant,
        engine=request.engine,
        report=request.report,
        expect=request.expect,
        force=request.force,
        progress=context.progress,
    )
    served, before = proposal.case.served, proposal.before
    return CheckedResult(
        digest=served.digest,
        report=served.verdict,
        parent=proposal.case.evidence.parent,
        evidence=proposal.case.verdict.evidence,
        variant=served.variant,
        engine=served.engine,
        verdict=proposal.case.verdict,
        previous=before.digest if before else None,
        forced=proposal.forced is not None,
        new=not proposal.there,
    )


@step(child=False, cached=False)
def promote(request: PromoteRequest, context: Context) -> PromoteResult:
    """Point a stage at the artifact, by compare-and-swap, if everything that has to speak for it
    does."""
    done = promotion.promote(
        open_store(request.store),
        request.model,
        request.what,
        request.to_stage,
        who=request.who,
        why=request.why,
        policy=request.policy,
        variant=request.variant,
        engine=request.engine,
        report=request.report,
        expect=request.expect,
        force=request.force,
        approved_by=request.approved_by,
        progress=context.progress,
    )
    return _result(request.model, request.to_stage, done)


@step(child=False, cached=False)
def roll_back(request: RollbackRequest, context: Context) -> PromoteResult:
    """Point a stage back at what it pointed to before: one write."""
    done = promotion.rollback(
        open_store(request.store),
        request.model,
        request.stage,
        to=request.to,
        who=request.who,
        why=request.why,
        policy=request.policy,
    )
    return _result(request.model, request.stage, done)


@step(child=False, cached=False)
def sign(request: SignRequest, context: Context) -> SignResult:
    """Sign artifacts in the store with the policy's key: their manifests, and so every file of
    theirs."""
    if request.policy.sign is None:
        raise ConfigError(
            "the policy names no key to sign with",
            where="policy: sign",
            hint="name a private key there",
        )
    store = open_store(request.store)
    return SignResult(
        signatures=tuple(
            signing.sign(store, digest, request.policy.sign) for digest in request.digests
        )
    )


def _result(model: str, stage: Stage, done: promotion.Promotion) -> PromoteResult:
    now: RefEntry = done.now
    return PromoteResult(
        model=model,
        stage=stage,
        digest=now.digest,
        report=now.verdict,
        previous=done.before.digest if done.before else None,
        number=len(done.ref.entries) - 1,
        moved=done.moved,
        problem=done.problem,
    )
