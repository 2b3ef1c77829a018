"""What speaks for an artifact: a report with its verdict, checked against itself and against the
evidence that it rests on.

Everything is read from the store that it is promoted in. How a verdict is reached is the business
of `tasks.quality.verdict`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from artifacts.records.evidence import EVIDENCE, Evidence
from artifacts.records.report import VERDICT, Verdict
from artifacts.registry.lineage import MAX_RECORD_BYTES
from artifacts.registry.refs import Served
from artifacts.store.protocol import Store
from configs.errors import ArtifactDamaged, ArtifactMissing, PromotionRefused, UnsafeManifest


@dataclass(frozen=True)
class Case:
    """What a report says, checked against itself and against its evidence. `served.verdict` is the
    report."""

    served: Served
    verdict: Verdict
    evidence: Evidence


def read_case(store: Store, report: str) -> Case:
    """What a report artifact says; only the files that are read are checked against their hashes
    here.

    Raises:
        PromotionRefused: it is no report, or it, its evidence and their manifests contradict one
            another.
        ArtifactMissing, ArtifactDamaged, UnsafeManifest: it or its evidence cannot be read.
    """
    where, hint = (
        f"report {report[:12]}",
        "judge the candidate again: `lmflows run` or `lmflows compare`",
    )
    manifest = store.manifest(report)
    if manifest.kind != "report":
        raise PromotionRefused(
            f"is of kind {manifest.kind} and has no verdict",
            where=where,
            hint="name the report artifact, or none",
        )
    try:
        verdict = Verdict.model_validate_json(_small(store, report, VERDICT))
        measured = store.manifest(verdict.evidence)
        evidence = Evidence.model_validate_json(_small(store, verdict.evidence, EVIDENCE))
    except ValidationError as error:
        raise PromotionRefused(
            f"its verdict or evidence is not what one looks like: {error.errors()[0]['msg']}",
            where=where,
            hint=hint,
        ) from None
    told = {parent.role: parent.digest for parent in manifest.parents}
    seen = {parent.role: parent.digest for parent in measured.parents}
    if (told.get("candidate"), told.get("evidence")) != (
        verdict.candidate,
        verdict.evidence,
    ) or told.get("parent") != evidence.parent:
        raise PromotionRefused(
            "its verdict or evidence is about something else than its manifest says",
            where=where,
            hint=hint,
        )
    if measured.kind != "evidence" or {evidence.candidate, seen.get("candidate")} != {
        verdict.candidate
    }:
        raise PromotionRefused(
            f"its evidence {verdict.evidence[:12]} is about {evidence.candidate[:12]}, and its"
            f" verdict about {verdict.candidate[:12]}",
            where=where,
            hint=hint,
        )
    if evidence.variant != verdict.variant:
        raise PromotionRefused(
            f"its verdict is about {verdict.variant}, and its evidence about {evidence.variant}",
            where=where,
            hint=hint,
        )
    served = Served(
        digest=verdict.candidate, verdict=report, variant=evidence.variant, engine=evidence.engine
    )
    return Case(served, verdict, evidence)


def newest_pass(
    store: Store, digest: str, variant: str | None, engine: str | None, where: str
) -> Case:
    """The newest report with a PASS for an artifact, as that variant on that engine if one is
    named. Reads every manifest of the store.

    Args:
        where: the stage that it is wanted for, for messages.

    Raises:
        PromotionRefused: there is none; or there are some for several ways to serve it and none was
            named; or another report of the same artifact, served in the same way, says FAIL or
            ANOMALOUS.
    """
    passed: list[Case] = []
    failed: list[Case] = []
    others: list[str] = []
    for other in reversed(store.digests()):
        try:
            manifest = store.manifest(other)
            if manifest.kind != "report" or ("candidate", digest) not in {
                (parent.role, parent.digest) for parent in manifest.parents
            }:
                continue
            case = read_case(store, other)
        except (ArtifactDamaged, ArtifactMissing, UnsafeManifest, PromotionRefused) as error:
            others.append(str(error))  # told only if there is no other one
            continue
        is_asked = variant in (None, case.served.variant) and engine in (None, case.served.engine)
        if case.verdict.outcome == "PASS" and is_asked:
            passed.append(case)
        else:
            failed += [case] if is_asked and case.verdict.outcome in ("FAIL", "ANOMALOUS") else []
            others.append(
                f"report {other[:12]} says {case.verdict.outcome} for {case.served.variant} on"
                f" {case.served.engine}"
            )
    if not passed:
        way = (f" as {variant}" if variant else "") + (f" on {engine}" if engine else "")
        raise PromotionRefused(
            "; ".join([f"{store.location} has no PASS for {digest[:12]}{way}", *others]),
            where=where,
            hint=(
                "`lmflows run` judges a candidate and uploads the report; `lmflows registry push`"
                " brings one in"
            ),
        )
    ways = sorted({f"{case.served.variant} on {case.served.engine}" for case in passed})
    if len(ways) > 1:
        raise PromotionRefused(
            f"{digest[:12]} has passed as {', as '.join(ways)}",
            where=where,
            hint="say which, with --variant, --engine or --report",
        )
    ways_failed = {
        (case.served.variant, case.served.engine): case.served.verdict for case in failed
    }
    if against := ways_failed.get((passed[0].served.variant, passed[0].served.engine)):
        raise PromotionRefused(
            f"{digest[:12]} has passed by report {passed[0].served.verdict[:12]} and failed by"
            f" report {against[:12]}",
            where=where,
            hint="look at both, and say which holds with --report",
        )
    return passed[0]


def _small(store: Store, digest: str, name: str) -> bytes:
    """A file with facts; one that is too large for that is not read into memory."""
    if (size := store.manifest(digest).entry(name).size) > MAX_RECORD_BYTES:
        raise ArtifactDamaged(
            f"{size} bytes are too many",
            where=f"{name} of {digest[:12]}",
            hint="do not use this artifact",
        )
    return store.read(digest, name)
