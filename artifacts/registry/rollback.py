"""Pointing a stage back at what it pointed to before: one small conditional write, and no evidence
that is not there already."""

from __future__ import annotations

from dataclasses import dataclass

from artifacts.registry.change import StageChange, moved
from artifacts.registry.names import check_names, check_words, require_expected
from artifacts.registry.refs import Decision, Ref, RefEntry, Registry, Served, Stage
from artifacts.registry.signing import require_signed
from artifacts.store.find import match
from artifacts.store.protocol import Store
from configs.errors import ArtifactDamaged, ArtifactMissing, PromotionRefused, UnsafeManifest
from configs.policy import Policy


@dataclass(frozen=True)
class Rollback:
    """A rollback that somebody asks for.

    Attributes:
        to: the digest, or its first digits, of an artifact of this stage's history. None: what was
            there before the last promotion that is in force (`Ref.previous`).
        expect: what the caller believes the stage to point to, as a digest or its first digits; or
            "nothing".
    """

    model: str
    stage: Stage
    to: str | None = None
    expect: str | None = None


def roll_back(store: Store, rollback: Rollback, decision: Decision, policy: Policy) -> StageChange:
    """Point a stage back at what it pointed to before.

    Raises:
        PromotionRefused: there is nothing to go back to, or it is not whole in the store any more.
            The stage is as it was, as with every other error.
        SignatureRefused: the policy asks for a signature that is missing or does not hold.
        StaleRef: the stage is not what `expect` says, or was moved while this looked.
        ArtifactDamaged: the ref itself is damaged.
        ConfigError: a name that cannot be one, or words that are no text.
    """
    where = check_names(rollback.model, rollback.stage)
    check_words(where, decision.who, decision.why)
    registry = Registry(store.objects)
    seen = registry.read(rollback.model, rollback.stage)
    require_expected(seen.ref, rollback.expect)
    before = seen.ref.current
    if before is None:
        raise PromotionRefused(
            "points to nothing: there is nothing to go back from",
            where=where,
            hint="`lmflows registry ls` shows what there is",
        )
    number = _way_back(seen.ref, rollback.to, where)
    served = seen.ref.entries[number].served
    if served == before.served:
        return StageChange(seen.ref, before, before, moved=False)
    _require_there(store, seen.ref, served, where)
    require_signed(store, [served.digest, served.report], policy)
    ref = registry.append(seen, served, decision, back_to=number)
    return moved(store, ref, before)


def absences(store: Store, served: Served) -> list[str]:
    """What is not there, of an artifact and its report, by existence and size: quick, and blind to
    a flipped byte."""
    found: list[str] = []
    for name, digest in (("", served.digest), ("report ", served.report)):
        try:
            found += [f"{name}{problem}" for problem in store.absent(digest)]
        except (ArtifactMissing, ArtifactDamaged, UnsafeManifest) as error:
            found.append(f"{name}{digest[:12]}: {error.message}")
    return found


def _require_there(store: Store, ref: Ref, served: Served, where: str) -> None:
    """Raise PromotionRefused, naming what else of the history is whole, if an artifact is not."""
    problems = absences(store, served)
    if not problems:
        return
    whole = [
        entry.digest[:12]
        for entry in _others(ref)
        if entry.digest != served.digest and not absences(store, entry.served)
    ]
    if whole:
        command = f"`lmflows registry rollback {ref.model} {ref.stage} --to {whole[0]}`"
        others = f"whole are {', '.join(whole)}: {command}"
    else:
        others = "nothing else of its history is whole"
    raise PromotionRefused(
        f"{served.digest[:12]} is not whole in {store.location}: {'; '.join(problems)}",
        where=where,
        # the report brings its artifact along
        hint=f"{others}; or bring it back with `lmflows registry push {served.report[:12]}`",
    )


def _way_back(ref: Ref, to: str | None, where: str) -> int:
    """The number of the promotion that a rollback goes back to."""
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
        known = dict.fromkeys(entry.digest[:12] for entry in _others(ref))
        raise PromotionRefused(
            f"{error.message} in its history",
            where=where,
            hint=f"it has had {', '.join(known) or 'nothing else'}; anything else is promoted",
        ) from None
    number = ref.last(digest)
    assert number is not None
    return ref.origin(number)


def _others(ref: Ref) -> list[RefEntry]:
    """What a stage has had besides what it has, newest first, each once."""
    now = ref.entries[-1].served
    newest_first = reversed(ref.entries)
    return list({entry.served: entry for entry in newest_first if entry.served != now}.values())
