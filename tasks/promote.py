"""The promotion steps: check a proposal, sign what has passed, move a stage forward, move it back.
The rules are those of `artifacts.registry`."""

from __future__ import annotations

from artifacts.manifest import Digest
from artifacts.records.report import Verdict
from artifacts.registry import promotion, rollback, signing
from artifacts.registry.change import StageChange
from artifacts.registry.proposal import Proposal, check_proposal
from artifacts.registry.refs import Decision, ModelName, Stage
from artifacts.store.open import open_store
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
    checked = check_proposal(
        open_store(request.store), _proposal(request), request.policy, context.progress
    )
    served = checked.report.served
    return CheckedResult(
        digest=served.digest,
        report=served.report,
        parent=checked.report.evidence.parent,
        evidence=checked.report.verdict.evidence,
        variant=served.variant,
        engine=served.engine,
        verdict=checked.report.verdict,
        previous=checked.before.digest if checked.before else None,
        forced=checked.forced is not None,
        new=not checked.there,
    )


@step(child=False, cached=False)
def promote(request: PromoteRequest, context: Context) -> PromoteResult:
    """Point a stage at the artifact, by compare-and-swap, if everything that has to speak for it
    does."""
    decision = Decision(request.who, request.why, request.approved_by)
    change = promotion.promote(
        open_store(request.store), _proposal(request), decision, request.policy, context.progress
    )
    return _result(change)


@step(child=False, cached=False)
def roll_back(request: RollbackRequest, context: Context) -> PromoteResult:
    """Point a stage back at what it pointed to before: one write."""
    wanted = rollback.Rollback(request.model, request.stage, to=request.to)
    decision = Decision(request.who, request.why)
    return _result(rollback.roll_back(open_store(request.store), wanted, decision, request.policy))


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


def _proposal(request: PromotionRequest) -> Proposal:
    return Proposal(
        model=request.model,
        to_stage=request.to_stage,
        what=request.what,
        variant=request.variant,
        engine=request.engine,
        report=request.report,
        expect=request.expect,
        force=request.force,
    )


def _result(change: StageChange) -> PromoteResult:
    return PromoteResult(
        model=change.ref.model,
        stage=change.ref.stage,
        digest=change.now.digest,
        report=change.now.report,
        previous=change.before.digest if change.before else None,
        number=len(change.ref.entries) - 1,
        moved=change.moved,
        problem=change.problem,
    )
