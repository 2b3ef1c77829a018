"""The checks of a promotion: everything that must speak for an artifact before a stage points to
it.

Writes nothing but the artifact's time in the store. Knows nothing of how a verdict is reached
(`tasks.quality.verdict`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import TypeAdapter

from artifacts.registry.names import check_names, check_words, require_expected
from artifacts.registry.refs import STAGES, RefEntry, Registry, Seen, Served, Stage
from artifacts.registry.signing import require_signed
from artifacts.registry.verdict_of_report import CheckedReport, newest_pass, read_report
from artifacts.store.ancestors import lineage
from artifacts.store.find import find
from artifacts.store.layout import blob_key
from artifacts.store.protocol import Problem, Store
from configs.callbacks import Progress, no_progress
from configs.errors import ArtifactDamaged, ArtifactMissing, PromotionRefused, UnsafeManifest
from configs.policy import Policy


@dataclass(frozen=True)
class Proposal:
    """A promotion that somebody asks for.

    Attributes:
        what: the artifact's digest or the first digits of it; or a stage, whose artifact, report
            and variant are taken.
        variant, engine: how it will be served; the evidence must be of that. None: as the evidence
            says.
        report: the digest of the report with the verdict. None: that of the stage before, else the
            newest with a PASS.
        expect: what the caller believes the stage to point to, as a digest or its first digits; or
            "nothing".
        force: why the stage before may be left out; goes into the history. It leaves out no other
            check.
    """

    model: str
    to_stage: Stage
    what: str
    variant: str | None = None
    engine: str | None = None
    report: str | None = None
    expect: str | None = None
    force: str | None = None

    @property
    def where(self) -> str:
        """The stage, for messages."""
        return f"{self.model}/{self.to_stage}"


@dataclass(frozen=True)
class CheckedProposal:
    """A promotion that may be carried out.

    Attributes:
        seen: the stage as it was read before the checks.
        report: what speaks for the artifact, and how it will be served.
        before: what the stage points to; None if to nothing.
        forced: the reason for leaving out a stage, if one is left out.
        there: it points there already, for the same reasons.
    """

    seen: Seen
    report: CheckedReport
    before: RefEntry | None
    forced: str | None
    there: bool


def check_proposal(
    store: Store, proposal: Proposal, policy: Policy, progress: Progress = no_progress
) -> CheckedProposal:
    """Check whether an artifact may be promoted to a stage; writes nothing, except that the
    artifact is young again.

    Raises:
        PromotionRefused: it may not be; the message says why. The stage is as it was, as with every
            other error.
        SignatureRefused: the policy asks for a signature that is missing or does not hold.
        StaleRef: the stage is not what `expect` says.
        ArtifactDamaged: the ref itself is damaged.
        ConfigError: a name that cannot be one, or words that are no text.
    """
    where = check_names(proposal.model, proposal.to_stage)
    if proposal.force is not None and not proposal.force.strip():
        raise PromotionRefused(
            "leaving out a stage needs a reason",
            where=where,
            hint="give one with --force: it goes into the history",
        )
    check_words(where, proposal.force)
    registry = Registry(store.objects)
    seen = registry.read(proposal.model, proposal.to_stage)
    before = seen.ref.current
    require_expected(seen.ref, proposal.expect)
    with _refusing(where):
        report = _report_for(store, registry, proposal)
        served = report.served
        parts = (served.digest, served.report, report.verdict.evidence)
        for digest in parts:
            # before it is verified: a garbage collection beside us either spares it or is noticed
            store.touch(digest)
        there = before is not None and before.served == served
        if not there:
            # now, for a quick answer, and again after the slow part
            _leaves_out_a_stage(registry, proposal, served)
        _require_whole(store, where, parts, progress)
    require_signed(store, [served.digest, served.report], policy)
    leaves_out = not there and _leaves_out_a_stage(registry, proposal, served)
    return CheckedProposal(seen, report, before, proposal.force if leaves_out else None, there)


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    """What an artifact lacks is a reason to refuse it."""
    try:
        yield
    except (ArtifactDamaged, UnsafeManifest) as error:
        raise PromotionRefused(
            f"{error.where}: {error.message}", where=where, hint=error.hint
        ) from error
    except ArtifactMissing as error:
        raise PromotionRefused(
            f"{error.where}: {error.message}",
            where=where,
            hint="`lmflows registry ls --artifacts` shows what there is; `lmflows registry push`"
            " brings it, with all it comes from, from a machine that has it",
        ) from error


# -- the verdict


def _report_for(store: Store, registry: Registry, proposal: Proposal) -> CheckedReport:
    """The report that speaks for what is to be promoted, checked to be a PASS for that digest,
    variant and engine."""
    given = find(store, proposal.report) if proposal.report else None
    digest, known = _artifact_of(store, registry, proposal)
    named = given or known
    if named is None:
        report = newest_pass(store, digest, proposal.variant, proposal.engine, proposal.where)
    else:
        report = read_report(store, named)
    _require_pass_for(report, digest, proposal.where)
    _require_way(report, "variant", proposal.variant, report.served.variant, proposal.where)
    _require_way(report, "engine", proposal.engine, report.served.engine, proposal.where)
    return report


def _artifact_of(store: Store, registry: Registry, proposal: Proposal) -> tuple[str, str | None]:
    """The digest of the artifact that is to be promoted, and of the report that a stage before has
    for it."""
    if proposal.what in STAGES:
        entry = _current_of(registry, proposal, proposal.what)
        return entry.digest, entry.report
    digest = find(store, proposal.what)
    before = _stage_before(registry, proposal)
    if before is not None and before.digest == digest:
        return digest, before.report
    return digest, None


def _current_of(registry: Registry, proposal: Proposal, stage: str) -> RefEntry:
    if stage == proposal.to_stage:
        raise PromotionRefused(
            "a stage is not promoted to itself",
            where=proposal.where,
            hint="name a digest, or the stage before",
        )
    known: Stage = TypeAdapter(Stage).validate_python(stage)
    entry = registry.read(proposal.model, known).ref.current
    if entry is None:
        raise PromotionRefused(
            f"{stage} of {proposal.model} points to nothing",
            where=proposal.where,
            hint=f"`lmflows registry promote {proposal.model} DIGEST {stage}` comes first",
        )
    return entry


def _stage_before(registry: Registry, proposal: Proposal) -> RefEntry | None:
    """What the stage before has; None if it has nothing, or if there is none."""
    number = STAGES.index(proposal.to_stage)
    if number == 0:
        return None
    return registry.read(proposal.model, STAGES[number - 1]).ref.current


def _require_pass_for(report: CheckedReport, digest: str, where: str) -> None:
    about = report.served.digest
    if about != digest:
        raise PromotionRefused(
            f"report {report.digest[:12]} is about {about[:12]}, not about {digest[:12]}",
            where=where,
            hint="only an artifact with its own PASS is promoted",
        )
    if report.verdict.outcome != "PASS":
        reasons = "; ".join(report.verdict.reasons)
        raise PromotionRefused(
            f"the verdict on {digest[:12]} is {report.verdict.outcome}: {reasons}",
            where=where,
            hint=f"only a PASS is promoted; `lmflows report {report.digest[:12]}` shows it all",
        )


def _require_way(report: CheckedReport, kind: str, asked: str | None, has: str, where: str) -> None:
    """Raise PromotionRefused if a report is about another variant or engine than was asked for."""
    if asked is not None and asked != has:
        raise PromotionRefused(
            f"report {report.digest[:12]} is about {kind} {has}, not {asked}",
            where=where,
            hint=f"have {asked} measured and judged first, or promote {has}",
        )


# -- the stages before


def _leaves_out_a_stage(registry: Registry, proposal: Proposal, served: Served) -> bool:
    """Whether a stage is left out, for which there must be a reason: the stage before does not have
    just this, judged by the same report.

    Raises:
        PromotionRefused: there is no reason.
    """
    number = STAGES.index(proposal.to_stage)
    if number == 0:
        return False
    current = _stage_before(registry, proposal)
    if current is not None and current.served == served:
        return False
    if proposal.force is not None:
        return True
    if current is None:
        has = "nothing"
    elif current.digest == served.digest:
        has = f"it as {current.variant} on {current.engine} by report {current.report[:12]}"
    else:
        has = current.digest[:12]
    before = STAGES[number - 1]
    raise PromotionRefused(
        f"{before} has {has}, not {served.digest[:12]} as {served.variant} on {served.engine} by"
        f" report {served.report[:12]}",
        where=proposal.where,
        hint=f"`lmflows registry promote {proposal.model} {served.digest[:12]} {before} --report"
        f" {served.report[:12]}` first; --force REASON leaves a stage out",
    )


# -- the bytes


def _require_whole(store: Store, where: str, parts: tuple[str, ...], progress: Progress) -> None:
    """Hash every file of an artifact, its report and its evidence where they lie, and see that all
    they come from is known.

    Raises:
        PromotionRefused: a file is changed or missing.
        ArtifactMissing, ArtifactDamaged, UnsafeManifest: not all that they come from is known.
    """
    for number, digest in enumerate(parts):
        progress(number / len(parts), f"verifying {digest[:12]}")
        problems = store.verify(digest)
        if problems:
            found = "; ".join(map(str, problems))
            remedy = f"`lmflows registry push {digest[:12]}` from a machine that has it whole"
            raise PromotionRefused(
                f"{digest[:12]} is damaged in {store.location}: {found}",
                where=where,
                hint=_removal(store, digest, problems) + remedy,
            )
    lineage(store, parts)
    progress(1.0, "verified")


def _removal(store: Store, digest: str, problems: list[Problem]) -> str:
    """What must be removed before a push heals an artifact; empty if nothing."""
    blobs = {entry.path: blob_key(entry.sha256) for entry in store.manifest(digest).files}
    changed = [
        blobs[problem.path]
        for problem in problems
        if problem.what == "changed" and problem.path in blobs
    ]
    if not changed:
        return ""
    return f"remove {', '.join(changed)} there, which a push would take for good by its size; then "
