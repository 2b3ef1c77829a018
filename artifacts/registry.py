"""The registry: which artifact each stage of each model points to, with its whole history.

One small file per model and stage, changed only by compare-and-swap: a writer says which version it read, and
loses if the file has moved since. Locally that is a lock and a rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from artifacts.files import write_atomic
from artifacts.manifest import Digest, canonical_json
from configs.errors import StaleRef

Stage = Literal["dev", "staging", "production"]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]


class RefEntry(BaseModel):
    """One promotion: what a stage was set to, on which verdict, by whom, why and when (UTC)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Digest
    verdict: Digest
    who: str
    why: str
    when: datetime


class Ref(BaseModel):
    """A stage of a model: every entry it ever had, newest last. `entries[-2]` is what a rollback goes back to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelName
    stage: Stage
    entries: tuple[RefEntry, ...] = ()

    @property
    def current(self) -> RefEntry | None:
        return self.entries[-1] if self.entries else None

    @property
    def version(self) -> str:
        """What compare-and-swap compares: the sha256 of the ref as stored."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))


class LocalRegistry:
    """The refs of a local store."""

    def __init__(self, root: Path) -> None:
        self.root = root / "refs"

    def read(self, model: str, stage: Stage) -> Ref:
        """The ref of a stage; one without entries if nothing was ever promoted to it."""
        try:
            return Ref.model_validate_json(self._path(model, stage).read_bytes())
        except FileNotFoundError:
            return Ref(model=model, stage=stage)

    def refs(self) -> list[Ref]:
        """Every ref there is, by model and stage."""
        return [Ref.model_validate_json(path.read_bytes()) for path in sorted(self.root.glob("*/*.json"))]

    def set(self, seen: Ref, *, digest: str, verdict: str, who: str, why: str) -> Ref:
        """Point a stage at an artifact.

        Args:
            seen: the ref as the caller read it.
            digest: the artifact that the stage shall point to.
            verdict: the report artifact with the verdict that allows it.

        Raises:
            StaleRef: the ref is not what the caller saw any more; nothing was written.
        """
        entry = RefEntry(digest=digest, verdict=verdict, who=who, why=why, when=datetime.now(UTC))
        wanted = Ref(model=seen.model, stage=seen.stage, entries=(*seen.entries, entry))
        with self._lock(seen.model, seen.stage):
            now = self.read(seen.model, seen.stage)
            if now.version != seen.version:
                raise StaleRef(f"moved to {now.current.digest[:12] if now.current else 'nothing'} in the meantime",
                               where=f"{seen.model}/{seen.stage}", hint="look at it and promote again if it still holds")
            write_atomic(self._path(seen.model, seen.stage), wanted.to_bytes())
        return wanted

    def _path(self, model: str, stage: str) -> Path:
        return self.root / model / f"{stage}.json"

    @contextmanager
    def _lock(self, model: str, stage: str) -> Iterator[None]:
        path = self._path(model, stage).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # the kernel lets go when the holder dies
            yield
        finally:
            os.close(handle)
