"""The verdict of a report artifact, checked against itself and against the evidence that it rests
on.

Everything is read from the store that an artifact is promoted in. How a verdict is reached is the
business of `tasks.quality.verdict`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from artifacts.manifest import Manifest
from artifacts.records.evidence import EVIDENCE, Evidence
from artifacts.records.report import VERDICT, Verdict
from artifacts.registry.facts import MAX_RECORD_BYTES
from artifacts.registry.refs import Served
from artifacts.store.protocol import Store
from configs.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    LmflowsError,
    PromotionRefused,
    UnsafeManifest,
)

JUDGE_AGAIN = "judge the candidate again: `lmflows run` or `lmflows compare`"


@dataclass(frozen=True)
class CheckedReport:
    """What a report says, checked against itself and against its evidence."""

    served: Served
    verdict: Verdict
    evidence: Evidence

    @property
    def digest(self) -> str:
        """Of the report artifact."""
        return self.served.report

    @property
    def way(self) -> str:
        """How the artifact is served, in words."""
        return f"{self.served.variant} on {self.served.engine}"


def read_report(store: Store, report: str) -> CheckedReport:
    """What a report artifact says; only the files that are read are checked against their hashes
    here.

    Raises:
        PromotionRefused: it is no report, or it, its evidence and their manifests contradict one
            another.
        ArtifactMissing, ArtifactDamaged, UnsafeManifest: it or its evidence cannot be read.
    """
    where = f"report {report[:12]}"
    manifest = store.manifest(report)
    if manifest.kind != "report":
        raise PromotionRefused(
            f"is of kind {manifest.kind} and has no verdict",
            where=where,
            hint="name the report artifact, or none",
        )
    try:
        verdict = Verdict.model_validate_json(_read_record(store, report, VERDICT))
        measured = store.manifest(verdict.evidence)
        record = _read_record(store, verdict.evidence, EVIDENCE)
        evidence = Evidence.model_validate_json(record)
    except ValidationError as error:
        raise PromotionRefused(
            f"its verdict or evidence is not what one looks like: {error.errors()[0]['msg']}",
            where=where,
            hint=JUDGE_AGAIN,
        ) from None
    contradiction = _contradiction(manifest, verdict, measured, evidence)
    if contradiction is not None:
        raise PromotionRefused(contradiction, where=where, hint=JUDGE_AGAIN)
    served = Served(
        digest=verdict.candidate, report=report, variant=evidence.variant, engine=evidence.engine
    )
    return CheckedReport(served, verdict, evidence)


def _contradiction(
    manifest: Manifest, verdict: Verdict, measured: Manifest, evidence: Evidence
) -> str | None:
    """How a report, its evidence (`measured` is its manifest) and their manifests contradict one
    another, if they do."""
    roles = {parent.role: parent.digest for parent in manifest.parents}
    named = (roles.get("candidate"), roles.get("evidence"), roles.get("parent"))
    if named != (verdict.candidate, verdict.evidence, evidence.parent):
        return "its verdict or evidence is about something else than its manifest says"
    measured_roles = {parent.role: parent.digest for parent in measured.parents}
    candidates = {evidence.candidate, measured_roles.get("candidate")}
    if measured.kind != "evidence" or candidates != {verdict.candidate}:
        return (
            f"its evidence {verdict.evidence[:12]} is about {evidence.candidate[:12]}, and its"
            f" verdict about {verdict.candidate[:12]}"
        )
    if evidence.variant != verdict.variant:
        return f"its verdict is about {verdict.variant}, and its evidence about {evidence.variant}"
    return None


def newest_pass(
    store: Store, digest: str, variant: str | None, engine: str | None, where: str
) -> CheckedReport:
    """The newest report with a PASS for an artifact, as that variant on that engine if one is
    named. Reads every manifest of the store.

    Args:
        where: the stage that it is wanted for, for messages.

    Raises:
        PromotionRefused: there is none; or there are some for several ways to serve it and none was
            named; or another report of the same artifact, served in the same way, says FAIL or
            ANOMALOUS.
    """
    found = list(_reports_about(store, digest))
    asked = [
        report
        for report in found
        if isinstance(report, CheckedReport)
        and variant in (None, report.served.variant)
        and engine in (None, report.served.engine)
    ]
    passed = [report for report in asked if report.verdict.outcome == "PASS"]
    if not passed:
        way = (f" as {variant}" if variant else "") + (f" on {engine}" if engine else "")
        others = [_in_words(report) for report in found]
        raise PromotionRefused(
            "; ".join([f"{store.location} has no PASS for {digest[:12]}{way}", *others]),
            where=where,
            hint="`lmflows run` judges a candidate and uploads the report; `lmflows registry push`"
            " brings one in",
        )
    ways = sorted({report.way for report in passed})
    if len(ways) > 1:
        raise PromotionRefused(
            f"{digest[:12]} has passed as {', as '.join(ways)}",
            where=where,
            hint="say which, with --variant, --engine or --report",
        )
    newest = passed[0]
    for report in reversed(asked):
        if report.way == newest.way and report.verdict.outcome in ("FAIL", "ANOMALOUS"):
            raise PromotionRefused(
                f"{digest[:12]} has passed by report {newest.digest[:12]} and failed by report"
                f" {report.digest[:12]}",
                where=where,
                hint="look at both, and say which holds with --report",
            )
    return newest


def _reports_about(store: Store, digest: str) -> Iterator[CheckedReport | LmflowsError]:
    """Every report about an artifact, newest first; an error stands for one that is unreadable."""
    for other in reversed(store.digests()):
        try:
            manifest = store.manifest(other)
            roles = {(parent.role, parent.digest) for parent in manifest.parents}
            if manifest.kind == "report" and ("candidate", digest) in roles:
                yield read_report(store, other)
        except (ArtifactDamaged, ArtifactMissing, UnsafeManifest, PromotionRefused) as error:
            yield error


def _in_words(report: CheckedReport | LmflowsError) -> str:
    if isinstance(report, LmflowsError):
        return str(report)
    return f"report {report.digest[:12]} says {report.verdict.outcome} for {report.way}"


def _read_record(store: Store, digest: str, name: str) -> bytes:
    """A file with facts; one that is too large for that is not read into memory."""
    size = store.manifest(digest).entry(name).size
    if size > MAX_RECORD_BYTES:
        raise ArtifactDamaged(
            f"{size} bytes are too many",
            where=f"{name} of {digest[:12]}",
            hint="do not use this artifact",
        )
    return store.read(digest, name)
