"""The registry: which artifact each stage of each model points to, with its whole history.

One small file per model and stage, `refs/<model>/<stage>.json`, changed only by compare-and-swap: a
writer says which version it read, and loses if the file has moved since. Each entry names the hash
of the one before it, so a history with a gap, a fork or a changed entry is found when it is read.
What may be promoted is decided in `artifacts.registry.proposal`.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from artifacts.manifest import Digest, canonical_json
from artifacts.records.record import Record
from artifacts.store.objects import Objects
from configs.errors import ArtifactDamaged, StaleRef

Stage = Literal["dev", "staging", "production"]
STAGES: tuple[Stage, ...] = get_args(Stage)
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
ModelName = Annotated[str, Field(pattern=NAME)]


class Served(Record):
    """What a stage serves: an artifact, how, and the report artifact with the verdict that allows
    it."""

    digest: Digest
    report: Digest
    variant: str
    engine: str


@dataclass(frozen=True)
class Decision:
    """On whose word a stage is changed: what the history keeps of it.

    Attributes:
        why: the reason that was given.
        approved_by: who approved it, where a person has to.
    """

    who: str
    why: str
    approved_by: str | None = None


class RefEntry(Served):
    """One change of a stage.

    Attributes:
        id: of this change; two people who do the same at the same moment differ by it.
        why: the reason that was given.
        when: UTC.
        forced: the reason for leaving out the stage before; None if it was not.
        approved_by: who approved it, where a person has to.
        back_to: of a rollback: the number of the entry that it goes back to.
        before: hex sha256 of the entry before this one; None for the first.
    """

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    action: Literal["promote", "rollback"]
    who: str
    why: str
    when: datetime
    forced: str | None = None
    approved_by: str | None = None
    back_to: int | None = Field(default=None, ge=0)
    before: Digest | None = None

    @property
    def served(self) -> Served:
        return Served(
            digest=self.digest, report=self.report, variant=self.variant, engine=self.engine
        )

    @property
    def hash(self) -> str:
        """By which the next entry names this one."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()


class Ref(Record):
    """A stage of a model: every entry it ever had, newest last; an entry's number is its place."""

    model: ModelName
    stage: Stage
    entries: tuple[RefEntry, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        before = None
        for number, entry in enumerate(self.entries):
            if entry.before != before:
                raise ValueError(
                    f"entry {number} does not follow entry {number - 1}: the history was changed"
                )
            self._check_way_back(number, entry)
            before = entry.hash
        return self

    def _check_way_back(self, number: int, entry: RefEntry) -> None:
        is_back = entry.back_to is not None
        goes_forward = (entry.back_to or 0) > max(0, number - 1)
        if (entry.action == "rollback") != is_back or goes_forward:
            raise ValueError(f"entry {number} goes back to an entry that was not before it")
        if entry.back_to is not None and self.entries[entry.back_to].served != entry.served:
            raise ValueError(
                f"entry {number} is not what entry {entry.back_to}, to which it goes back, was"
            )

    @property
    def current(self) -> RefEntry | None:
        """What the stage points to; None if to nothing."""
        return self.entries[-1] if self.entries else None

    @property
    def previous(self) -> int | None:
        """The number of the entry that a rollback goes back to: what was served before the last
        promotion that is in force.

        Rollbacks are like undo: after one, the next goes further back, never forward again to what
        was taken out.
        """
        number = self.origin(len(self.entries) - 1) - 1
        return self.origin(number) if number >= 0 else None

    def origin(self, number: int) -> int:
        """The promotion that an entry stands for: itself, or where a rollback went back to; -1
        stays -1."""
        while number >= 0:
            back = self.entries[number].back_to
            if back is None:
                break
            number = back
        return number

    def last(self, digest: str) -> int | None:
        """The number of the newest entry that points to an artifact."""
        for number in reversed(range(len(self.entries))):
            if self.entries[number].digest == digest:
                return number
        return None

    @property
    def head(self) -> str | None:
        """The hash of the newest entry, which no other entry names yet."""
        return self.entries[-1].hash if self.entries else None

    def to_bytes(self) -> bytes:
        """The file: all of it, and the head."""
        return canonical_json(self.model_dump(mode="json") | {"head": self.head})


@dataclass(frozen=True)
class Seen:
    """A ref as it was read, and the version that compare-and-swap compares."""

    ref: Ref
    version: str | None


class Registry:
    """The refs of a store."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def read(self, model: str, stage: Stage) -> Seen:
        """The ref of a stage; one without entries if nothing was ever promoted to it.

        Raises:
            ArtifactDamaged: it is not a ref, or its history has a gap, a fork or a changed entry.
        """
        empty = Ref(model=model, stage=stage)
        found = self.objects.get(_key(model, stage))
        if found is None:
            return Seen(empty, None)
        data, version = found
        return Seen(_parse(data, model, stage), version)

    def refs(self) -> list[Ref]:
        """Every ref there is, by model and stage (dev first).

        Raises:
            ArtifactDamaged: one of them is, or something among them is not named like a ref.
        """
        wanted = []
        for key in self.objects.keys("refs/"):
            model, _, stage = key.removeprefix("refs/").removesuffix(".json").partition("/")
            if stage not in STAGES or not re.fullmatch(NAME, model):
                raise ArtifactDamaged(
                    "is not named like a ref, refs/MODEL/STAGE.json",
                    where=key,
                    hint="somebody has moved files in the store: put it where it was, or remove it",
                )
            wanted.append((model, STAGES.index(stage)))
        return [self.read(model, STAGES[number]).ref for model, number in sorted(wanted)]

    def append(
        self,
        seen: Seen,
        served: Served,
        decision: Decision,
        *,
        forced: str | None = None,
        back_to: int | None = None,
    ) -> Ref:
        """Point a stage at something, if nobody has moved it since it was read. Decides nothing
        else.

        Args:
            forced, back_to: as `RefEntry` has them; it is a rollback if there is a `back_to`.

        Raises:
            StaleRef: the ref is not what the caller saw any more; nothing was written.
        """
        ref = seen.ref
        entry = RefEntry(
            **served.model_dump(),
            id=uuid.uuid4().hex,
            action="promote" if back_to is None else "rollback",
            who=decision.who,
            why=decision.why,
            when=datetime.now(UTC),
            forced=forced,
            approved_by=decision.approved_by,
            back_to=back_to,
            before=ref.head,
        )
        wanted = Ref(model=ref.model, stage=ref.stage, entries=(*ref.entries, entry))
        try:
            self.objects.swap(_key(ref.model, ref.stage), wanted.to_bytes(), seen=seen.version)
        except StaleRef:
            there = self.read(ref.model, ref.stage).ref
            if there.entries[: len(wanted.entries)] == wanted.entries:
                # the answer was lost, the write was not, and somebody has gone on from it
                return wanted
            now = there.current
            raise StaleRef(
                f"moved to {now.digest[:12] if now else 'nothing'} in the meantime",
                where=f"{ref.model}/{ref.stage}",
                hint="look at it and do it again if it still holds",
            ) from None
        return wanted


def _key(model: str, stage: str) -> str:
    return f"refs/{model}/{stage}.json"


def _parse(data: bytes, model: str, stage: str) -> Ref:
    where = f"ref {model}/{stage}"
    hint = "put back the file from a backup of the store, or an earlier version of the object"
    try:
        fields = json.loads(data)
        head = fields.pop("head")
        ref = Ref.model_validate(fields)
    except ValidationError as error:
        raise ArtifactDamaged(
            error.errors()[0]["msg"].removeprefix("Value error, "), where=where, hint=hint
        ) from None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ArtifactDamaged(
            f"cannot be read ({type(error).__name__}: {error})", where=where, hint=hint
        ) from None
    if head != ref.head:
        raise ArtifactDamaged(
            "its newest entry is not the one that was written last: the history was changed",
            where=where,
            hint=hint,
        )
    if (ref.model, ref.stage) != (model, stage):
        raise ArtifactDamaged(
            f"is the ref of {ref.model}/{ref.stage}",
            where=where,
            hint="somebody has moved files in the store",
        )
    return ref
