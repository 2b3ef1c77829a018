"""What may be promoted, and the way back: every rule that stands between an artifact and a stage.

A promotion reads the ref, checks everything, and writes the ref if it has not moved meanwhile; a
rollback checks that what it goes back to is there. Each is one small conditional write, so a kill
at any moment leaves the old state or the new one. Knows nothing of how a verdict is reached
(`tasks.quality.verdict`), and serves nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from artifacts.registry.refs import STAGES, ModelName, Ref, RefEntry, Registry, Seen, Served, Stage
from artifacts.registry.signing import require_signed
from artifacts.registry.verdict_of_report import Case, newest_pass, read_case
from artifacts.store.protocol import Store, lineage, match
from configs.callbacks import Progress, no_progress
from configs.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    ConfigError,
    LmflowsError,
    PromotionRefused,
    StaleRef,
    UnsafeManifest,
)
from configs.policy import Policy

MAX_WORDS = 4000  # characters of a reason
NOTHING = "nothing"  # for `expect`: the stage points to nothing yet


@dataclass(frozen=True)
class Promotion:
    """What a promotion or a rollback has led to.

    Attributes:
        ref: as it is now, with its whole history.
        before: what the stage pointed to; None if to nothing.
        now: what it points to.
        moved: False if it pointed there already, for the same reasons, and nothing was written.
        problem: what is wrong although the stage was moved: a garbage collection beside us has
            taken what it points to, or nobody could tell.
    """

    ref: Ref
    before: RefEntry | None
    now: RefEntry
    moved: bool
    problem: str | None = None


@dataclass(frozen=True)
class Proposal:
    """A promotion that was checked and not written yet.

    Attributes:
        seen: the stage as it was read before the checks.
        before: what it points to; None if to nothing.
        forced: the reason for leaving out a stage, if one is left out.
        there: it points there already, for the same reasons.
    """

    seen: Seen
    case: Case
    before: RefEntry | None
    forced: str | None
    there: bool


def promote(
    store: Store,
    model: str,
    what: str,
    to_stage: Stage,
    *,
    who: str,
    why: str,
    policy: Policy,
    variant: str | None = None,
    engine: str | None = None,
    report: str | None = None,
    expect: str | None = None,
    force: str | None = None,
    approved_by: str | None = None,
    progress: Progress = no_progress,
) -> Promotion:
    """Point a stage of a model at an artifact, if everything that has to speak for it does.

    Args:
        approved_by: who approved it, where a person has to.
        what, variant, engine, report, expect, force: as for `examine`.

    Raises:
        StaleRef: the stage was moved while this looked. PromotionRefused, SignatureRefused,
            StaleRef, ArtifactDamaged, ConfigError: as for `examine`.
    """
    _check_words(check_names(model, to_stage), who, why, force, approved_by)
    proposal = examine(
        store,
        model,
        what,
        to_stage,
        policy=policy,
        variant=variant,
        engine=engine,
        report=report,
        expect=expect,
        force=force,
        progress=progress,
    )
    seen, served, before = proposal.seen, proposal.case.served, proposal.before
    if proposal.there and before is not None:
        return Promotion(seen.ref, before, before, moved=False)
    ref = Registry(store.objects).append(
        seen,
        served,
        action="promote",
        who=who,
        why=why,
        forced=proposal.forced,
        approved_by=approved_by,
    )
    return Promotion(
        ref, before, ref.entries[-1], moved=True, problem=_problem_since(store, served)
    )


def examine(
    store: Store,
    model: str,
    what: str,
    to_stage: Stage,
    *,
    policy: Policy,
    variant: str | None = None,
    engine: str | None = None,
    report: str | None = None,
    expect: str | None = None,
    force: str | None = None,
    progress: Progress = no_progress,
) -> Proposal:
    """Check whether an artifact may be promoted to a stage; writes nothing, except that the
    artifact is young again.

    Args:
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

    Raises:
        PromotionRefused: it may not be; the message says why. The stage is as it was, as with every
            other error.
        SignatureRefused: the policy asks for a signature that is missing or does not hold.
        StaleRef: the stage is not what `expect` says.
        ArtifactDamaged: the ref itself is damaged.
        ConfigError: a name that cannot be one, or words that are no text.
    """
    where = check_names(model, to_stage)
    if force is not None and not force.strip():
        raise PromotionRefused(
            "leaving out a stage needs a reason",
            where=where,
            hint="give one with --force: it goes into the history",
        )
    _check_words(where, force)
    registry = Registry(store.objects)
    seen = registry.read(model, to_stage)
    before = seen.ref.current
    require_expected(seen.ref, expect)
    with _refusing(where):
        case = _case(
            store, registry, model, what, to_stage, variant=variant, engine=engine, report=report
        )
        parts = (case.served.digest, case.served.verdict, case.verdict.evidence)
        for digest in parts:
            # before it is verified: a garbage collection beside us either spares it or is noticed
            store.touch(digest)
        there = before is not None and before.served == case.served
        if not there:
            # now, for a quick answer, and again after the slow part
            _jumps(registry, model, to_stage, case.served, force)
        _require_whole(store, where, parts, progress)
    require_signed(store, [case.served.digest, case.served.verdict], policy)
    forced = force if not there and _jumps(registry, model, to_stage, case.served, force) else None
    return Proposal(seen, case, before, forced, there)


def rollback(
    store: Store,
    model: str,
    stage: Stage,
    *,
    who: str,
    why: str,
    policy: Policy,
    to: str | None = None,
    expect: str | None = None,
) -> Promotion:
    """Point a stage back at what it pointed to before: one write, and no evidence that is not there
    already.

    Args:
        to: the digest, or its first digits, of an artifact of this stage's history. None: what was
            there before the last promotion that is in force (`Ref.previous`).
        expect: as for `promote`.

    Raises:
        PromotionRefused: there is nothing to go back to, or it is not whole in the store any more.
            The stage is as it was, as with every other error.
        SignatureRefused, StaleRef, ArtifactDamaged, ConfigError: as for `promote`.
    """
    where = check_names(model, stage)
    _check_words(where, who, why)
    registry = Registry(store.objects)
    seen = registry.read(model, stage)
    require_expected(seen.ref, expect)
    before = seen.ref.current
    if before is None:
        raise PromotionRefused(
            "points to nothing: there is nothing to go back from",
            where=where,
            hint="`lmflows registry ls` shows what there is",
        )
    number = _way_back(seen.ref, to, where)
    served = seen.ref.entries[number].served
    if served == before.served:
        return Promotion(seen.ref, before, before, moved=False)
    if problems := absences(store, served):
        whole = [
            entry.digest[:12]
            for entry in _others(seen.ref)
            if entry.digest != served.digest and not absences(store, entry.served)
        ]
        # the report brings its artifact along
        hint = (
            f"whole are {', '.join(whole)}: `lmflows registry rollback {model} {stage} --to"
            f" {whole[0]}`"
            if whole
            else "nothing else of its history is whole"
        ) + f"; or bring it back with `lmflows registry push {served.verdict[:12]}`"
        raise PromotionRefused(
            f"{served.digest[:12]} is not whole in {store.location}: {'; '.join(problems)}",
            where=where,
            hint=hint,
        )
    require_signed(store, [served.digest, served.verdict], policy)
    ref = registry.append(seen, served, action="rollback", who=who, why=why, back_to=number)
    return Promotion(
        ref, before, ref.entries[-1], moved=True, problem=_problem_since(store, served)
    )


def check_names(model: str, stage: str) -> str:
    """The name of a stage of a model, for messages; ConfigError if there can be no such stage or
    model."""
    try:
        TypeAdapter(ModelName).validate_python(model)
    except ValidationError:
        raise ConfigError(
            f"{model!r} cannot be a model's name",
            where="model",
            hint="letters, digits and . _ -, at most 96, no path",
        ) from None
    if stage not in STAGES:
        raise ConfigError(f"no stage {stage!r}", where=model, hint=f"one of {', '.join(STAGES)}")
    return f"{model}/{stage}"


def _check_words(where: str, *words: str | None) -> None:
    """What goes into the history for ever is text that can be stored, and short."""
    for text in filter(None, words):
        # escapes of a terminal; no UTF-8
        odd = any(
            unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t" for char in text
        )
        if odd or len(text) > MAX_WORDS:
            raise ConfigError(
                f"{text[:40]!r} cannot go into the history",
                where=where,
                hint=f"plain text, at most {MAX_WORDS} characters",
            )


def find(store: Store, digest: str) -> str:
    """The one artifact of a store that starts with these digits.

    Raises:
        ArtifactMissing: there is none, or more than one.
    """
    digits = digest.removeprefix("sha256:")
    if re.fullmatch("[0-9a-f]{64}", digits) and store.has(digits):
        return digits  # a bucket need not be listed for it
    return match(
        digest,
        store.digests(),
        where=store.location,
        hint=(
            "`lmflows registry ls --artifacts` shows what there is; `lmflows registry push` brings"
            " something in"
        ),
    )


def require_expected(ref: Ref, expect: str | None) -> None:
    """StaleRef unless a stage points to what somebody believes it to; ConfigError if that cannot be
    a digest."""
    if expect is None:
        return
    digits = expect.removeprefix("sha256:")
    if expect != NOTHING and not re.fullmatch("[0-9a-f]{6,64}", digits):
        raise ConfigError(
            f"{expect!r} is no digest",
            where="--expect",
            hint=f"give at least 6 of its digits, or {NOTHING!r}",
        )
    now = ref.current.digest if ref.current else NOTHING
    if not (now == NOTHING if expect == NOTHING else now.startswith(digits)):
        raise StaleRef(
            f"points to {now[:12]}, not to {expect[:12]}",
            where=f"{ref.model}/{ref.stage}",
            hint="look at it and do it again if it still holds",
        )


def absences(store: Store, served: Served) -> list[str]:
    """What is not there, of an artifact and its report, by existence and size: quick, and blind to
    a flipped byte."""
    found: list[str] = []
    for name, digest in (("", served.digest), ("report ", served.verdict)):
        try:
            found += [f"{name}{problem}" for problem in store.absent(digest)]
        except (ArtifactMissing, ArtifactDamaged, UnsafeManifest) as error:
            found.append(f"{name}{digest[:12]}: {error.message}")
    return found


# -- the checks of a promotion


def _case(
    store: Store,
    registry: Registry,
    model: str,
    what: str,
    to_stage: Stage,
    *,
    variant: str | None,
    engine: str | None,
    report: str | None,
) -> Case:
    """The report that speaks for what is to be promoted, checked to be a PASS for that digest,
    variant and engine."""
    where = f"{model}/{to_stage}"
    given = find(store, report) if report else None
    if what in STAGES:
        entry = _current_of(registry, model, what, to_stage)
        digest, known = entry.digest, entry.verdict
    else:
        digest, known = find(store, what), None
        if (number := STAGES.index(to_stage)) and (
            entry_before := registry.read(model, STAGES[number - 1]).ref.current
        ):
            known = entry_before.verdict if entry_before.digest == digest else None
    named = given or known
    case = read_case(store, named) if named else newest_pass(store, digest, variant, engine, where)
    name = f"report {case.served.verdict[:12]}"
    if case.served.digest != digest:
        raise PromotionRefused(
            f"{name} is about {case.served.digest[:12]}, not about {digest[:12]}",
            where=where,
            hint="only an artifact with its own PASS is promoted",
        )
    if case.verdict.outcome != "PASS":
        raise PromotionRefused(
            f"the verdict on {digest[:12]} is {case.verdict.outcome}:"
            f" {'; '.join(case.verdict.reasons)}",
            where=where,
            hint=(
                f"only a PASS is promoted; `lmflows report {case.served.verdict[:12]}` shows it all"
            ),
        )
    for kind, asked, has in (
        ("variant", variant, case.served.variant),
        ("engine", engine, case.served.engine),
    ):
        if asked is not None and asked != has:
            raise PromotionRefused(
                f"{name} is about {kind} {has}, not {asked}",
                where=where,
                hint=f"have {asked} measured and judged first, or promote {has}",
            )
    return case


def _current_of(registry: Registry, model: str, stage: str, to_stage: Stage) -> RefEntry:
    if stage == to_stage:
        raise PromotionRefused(
            "a stage is not promoted to itself",
            where=f"{model}/{to_stage}",
            hint="name a digest, or the stage before",
        )
    known: Stage = TypeAdapter(Stage).validate_python(stage)
    if entry := registry.read(model, known).ref.current:
        return entry
    raise PromotionRefused(
        f"{stage} of {model} points to nothing",
        where=f"{model}/{to_stage}",
        hint=f"`lmflows registry promote {model} DIGEST {stage}` comes first",
    )


def _jumps(
    registry: Registry, model: str, to_stage: Stage, served: Served, force: str | None
) -> bool:
    """Whether a stage is left out, for which there must be a reason: the stage before has not just
    this, judged by the same report."""
    if (number := STAGES.index(to_stage)) == 0:
        return False
    before = STAGES[number - 1]
    current = registry.read(model, before).ref.current
    if current is not None and current.served == served:
        return False
    if force is not None:
        return True
    has = "nothing" if current is None else current.digest[:12]
    if current is not None and current.digest == served.digest:
        has = f"it as {current.variant} on {current.engine} by report {current.verdict[:12]}"
    raise PromotionRefused(
        f"{before} has {has}, not {served.digest[:12]} as {served.variant} on {served.engine} by"
        f" report {served.verdict[:12]}",
        where=f"{model}/{to_stage}",
        hint=(
            f"`lmflows registry promote {model} {served.digest[:12]} {before} --report"
            f" {served.verdict[:12]}` first; --force REASON leaves a stage out"
        ),
    )


def _require_whole(store: Store, where: str, parts: tuple[str, ...], progress: Progress) -> None:
    """Hash every file of an artifact, its report and its evidence where they lie, and see that all
    they come from is known."""
    for number, digest in enumerate(parts):
        progress(number / len(parts), f"verifying {digest[:12]}")
        if problems := store.verify(digest):
            blobs = {
                entry.path: f"blobs/sha256/{entry.sha256}" for entry in store.manifest(digest).files
            }
            changed = [
                blobs[problem.path]
                for problem in problems
                if problem.what == "changed" and problem.path in blobs
            ]
            remove = (
                f"remove {', '.join(changed)} there, which a push would take for good by its size;"
                " then "
                if changed
                else ""
            )
            raise PromotionRefused(
                f"{digest[:12]} is damaged in {store.location}: {'; '.join(map(str, problems))}",
                where=where,
                hint=(
                    f"{remove}`lmflows registry push {digest[:12]}` from a machine that has it"
                    " whole"
                ),
            )
    lineage(store, parts)
    progress(1.0, "verified")


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
            hint=(
                "`lmflows registry ls --artifacts` shows what there is; `lmflows registry push`"
                " brings it, with all it comes from, from a machine that has it"
            ),
        ) from error


def _problem_since(store: Store, served: Served) -> str | None:
    """What has happened to what a stage was just pointed to. The stage was moved: whatever is found
    must not be told as a move that failed."""
    try:
        gone = [digest[:12] for digest in (served.digest, served.verdict) if not store.has(digest)]
    except LmflowsError as error:
        return f"whether {served.digest[:12]} is still there could not be asked: {error}"
    return (
        f"a garbage collection has removed {' and '.join(gone)} at this very moment: `lmflows"
        f" registry push {served.verdict[:12]}` from a machine that has it, or `lmflows registry"
        " rollback`"
        if gone
        else None
    )


def require_no_problem(where: str, problem: str | None) -> None:
    """Raise ArtifactMissing if something is wrong although a stage was moved: when the move has
    been told, which must not be lost."""
    if problem:
        raise ArtifactMissing(
            f"the stage was moved, but {problem}",
            where=where,
            hint=f"`lmflows registry verify {where}`",
        )


# -- the way back


def _way_back(ref: Ref, to: str | None, where: str) -> int:
    """The number of the promotion that a rollback goes back to."""
    known = ", ".join(dict.fromkeys(entry.digest[:12] for entry in _others(ref))) or "nothing else"
    if to is None:
        if ref.previous is None:
            raise PromotionRefused(
                "pointed to nothing before this: there is nothing to go back to",
                where=where,
                hint="`lmflows registry history` shows all; --to names an entry of it",
            )
        return ref.previous
    try:
        digest = match(to, (entry.digest for entry in ref.entries), where=where)
    except ArtifactMissing as error:
        raise PromotionRefused(
            f"{error.message} in its history",
            where=where,
            hint=f"it has had {known}; anything else is promoted",
        ) from None
    number = ref.last(digest)
    assert number is not None
    return ref.origin(number)


def _others(ref: Ref) -> list[RefEntry]:
    """What a stage has had besides what it has, newest first, each once."""
    now = ref.entries[-1].served
    return list(
        {entry.served: entry for entry in reversed(ref.entries) if entry.served != now}.values()
    )
