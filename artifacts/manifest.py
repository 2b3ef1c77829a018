"""The manifest: which files an artifact has, what it was made from, and how. Its sha256 is the artifact's digest.

Nothing in it depends on the machine or the time, so the same recipe on the same input gives the same digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from configs.errors import UnsafeManifest

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Kind = Literal["fp16", "w4a16", "texts", "measurement", "evidence", "report"]
MAX_FILES = 100_000
MAX_FILE_BYTES = 1 << 50  # 1 PiB: a larger size in a manifest is a lie, and would defeat the disk check
MAX_PATH_BYTES = 1024  # PATH_MAX of macOS; Linux has 4096, of which the store's own folder takes a part


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces and no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(value: Any) -> str:
    """Hex sha256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def check_path(path: str) -> str:
    """Return `path` if it stays inside its folder on every system; raise ValueError if it may not."""
    parts = PurePosixPath(path).parts
    if not path or path != "/".join(parts) or path.startswith("/") or ".." in parts:
        raise ValueError(f"path {path!r} is not a plain relative path")
    too_long = len(path.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > 255 for part in parts)
    if too_long or re.search(r"[\x00-\x1f\\:]", path):
        raise ValueError(f"path {path!r} has a character or length that not every file system takes")
    return path


class FileEntry(BaseModel):
    """One file: POSIX path relative to the artifact's folder, size in bytes, hex sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int = Field(ge=0, le=MAX_FILE_BYTES)
    sha256: Digest

    _safe = field_validator("path")(check_path)


class Parent(BaseModel):
    """An artifact that this one was made from, and its part in it (`model`, `texts`, `evidence`, ...)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    digest: Digest


class Manifest(BaseModel):
    """An artifact's files (sorted by path), parents (sorted by role) and recipe."""

    # "constants": a NaN in a recipe reaches canonical_json, which refuses it, and does not turn into null on the way
    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,), ser_json_inf_nan="constants")

    version: Literal[1] = 1
    kind: Kind
    files: tuple[FileEntry, ...] = Field(min_length=1, max_length=MAX_FILES)
    parents: tuple[Parent, ...] = ()
    recipe: dict[str, Any] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        paths = [entry.path for entry in self.files]
        if paths != sorted(set(paths)):
            raise ValueError("files must be sorted by path, each once")
        names = {path.casefold() for path in paths}
        if len(names) != len(paths):
            raise ValueError("two paths differ only by case")
        folders = (str(parent) for path in paths for parent in PurePosixPath(path).parents)
        if clash := next((folder for folder in folders if folder.casefold() in names), None):
            raise ValueError(f"{clash!r} is both a file and a folder")
        roles = [(parent.role, parent.digest) for parent in self.parents]
        if roles != sorted(set(roles)):
            raise ValueError("parents must be sorted by role, each once")
        return self

    @cached_property
    def digest(self) -> str:
        """The artifact's name: hex sha256 of `to_bytes()`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files)

    def parent(self, role: str) -> str:
        """The digest of the parent with that role; raises KeyError when there is none."""
        return {parent.role: parent.digest for parent in self.parents}[role]

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Manifest:
        """Read a manifest that may come from anywhere.

        Raises:
            UnsafeManifest: it is not well formed, or not in canonical form: its digest would be that of other bytes.
        """
        try:
            manifest = cls.model_validate_json(data)
            if manifest.to_bytes() != data:
                raise ValueError("not in canonical form")
        except ValueError as error:  # pydantic's ValidationError is one
            raise UnsafeManifest(_first_problem(error), where=where, hint="do not use this artifact") from error
        return manifest


def _first_problem(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors()[0]
    return ": ".join([*filter(None, [".".join(map(str, problem["loc"]))]), problem["msg"].removeprefix("Value error, ")])


class ModelArtifact(BaseModel):
    """What passes between steps: an artifact's digest, its kind, and the folder its files lie in on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Digest
    kind: Kind
    path: Path

    @property
    def short(self) -> str:
        """The first 12 digits of the digest, for people."""
        return self.digest[:12]
