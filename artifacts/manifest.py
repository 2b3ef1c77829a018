"""The manifest: which files an artifact has, what it was made from, and how. Its sha256 is the
artifact's digest.

Nothing in it depends on the machine or the time, so the same recipe on the same input gives the
same digest.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from configs.errors import ArtifactMissing, UnsafeManifest

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Kind = Literal["fp16", "w4a16", "texts", "measurement", "evidence", "report"]
MAX_FILES = 100_000
# 16 TiB, the most that ext4 takes: a larger size in a manifest is a lie, and would defeat the disk
# check
MAX_FILE_BYTES = 1 << 44
MAX_TOTAL_BYTES = 1 << 46
# PATH_MAX of macOS; Linux has 4096, of which the store's own folder takes a part
MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255  # of a file or a folder
MAX_DEPTH = 32  # folders in each other
MAX_PARENTS = 10_000
MAX_BYTES = 64 << 20  # of a manifest; one of 100 000 files with long names has 30 MB
EMPTY = hashlib.sha256().hexdigest()
# What Windows cannot hold as a name, or takes for a device whatever follows the dot (a trailing dot
# or blank it drops: two names, one file).
DEVICE = re.compile(
    r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$|clock\$)( *\..*)?", re.IGNORECASE
)
# Unicode's categories of what shows as nothing, or turns what is shown around
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces and no NaN: equal values give equal bytes."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of(value: Any) -> str:
    """Hex sha256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def check_path(path: str) -> str:
    """Return `path` if it stays inside its folder on every system; raise ValueError if it may leave
    it."""
    parts = path.split("/")
    if {"", ".", ".."} & set(parts):
        raise ValueError(f"path {_short(path)} is not a plain relative path")
    if _has_odd_character(path) or _is_too_long(path, parts):
        raise ValueError(
            f"path {_short(path)} has a character or length that not every file system takes"
        )
    if any(part[-1] in ". " or DEVICE.fullmatch(part) for part in parts):
        raise ValueError(
            f"path {_short(path)} has a name that is another file, or a device, on some systems"
        )
    return path


def _has_odd_character(path: str) -> bool:
    if re.search(r'[\x00-\x1f\x7f\\:*?"<>|]', path):
        return True
    return not path.isascii() and any(unicodedata.category(char) in UNSEEN for char in path)


def _is_too_long(path: str, parts: list[str]) -> bool:
    if len(path.encode()) > MAX_PATH_BYTES or len(parts) > MAX_DEPTH:
        return True
    return any(len(part.encode()) > MAX_NAME_BYTES for part in parts)


def _short(path: str) -> str:
    return ascii(path) if len(path) <= 100 else f"{path[:100]!a}..."


def same_name(path: str) -> str:
    """What two paths have in common if they are one file where neither case nor the spelling of an
    accent counts (macOS, Windows)."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def check_together(paths: Collection[str]) -> None:
    """Raise ValueError if two of the paths, each once and good by itself, are one file on some
    system, or a file and a folder."""
    folders = _folders_of(paths)
    file_names = {same_name(path) for path in paths}
    folder_names = {same_name(folder) for folder in folders}
    clashes = file_names & folder_names
    if clashes:
        raise ValueError(f"{_short(min(clashes))} is both a file and a folder")
    if len(file_names) != len(paths) or len(folder_names) != len(folders):
        raise ValueError("two paths differ only by case, or by how an accent is spelled")


def _folders_of(paths: Collection[str]) -> set[str]:
    """Every folder that one of the paths lies in."""
    folders: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return folders


class FileEntry(BaseModel):
    """One file: POSIX path relative to the artifact's folder, size in bytes, hex sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int = Field(ge=0, le=MAX_FILE_BYTES)
    sha256: Digest

    _safe = field_validator("path")(check_path)


class Parent(BaseModel):
    """An artifact that this one was made from, and its part in it (`model`, `texts`, `evidence`,
    ...)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")
    digest: Digest


class Manifest(BaseModel):
    """An artifact's files (sorted by path), parents (sorted by role) and recipe."""

    # "constants": a NaN in a recipe reaches canonical_json, which refuses it, and does not turn
    # into null on the way
    model_config = ConfigDict(
        frozen=True, extra="forbid", ignored_types=(cached_property,), ser_json_inf_nan="constants"
    )

    version: Literal[1] = 1
    kind: Kind
    files: tuple[FileEntry, ...] = Field(min_length=1, max_length=MAX_FILES)
    parents: tuple[Parent, ...] = Field(default=(), max_length=MAX_PARENTS)
    recipe: dict[str, Any] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        paths = [entry.path for entry in self.files]
        if paths != sorted(set(paths)):
            raise ValueError("files must be sorted by path, each once")
        check_together(paths)
        sizes: dict[str, int] = {EMPTY: 0}
        if any(sizes.setdefault(entry.sha256, entry.size) != entry.size for entry in self.files):
            raise ValueError("the same sha256 stands with two sizes")
        if self.size > MAX_TOTAL_BYTES:
            raise ValueError(f"files of {self.size} bytes together are more than anybody has")
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

    def entry(self, path: str) -> FileEntry:
        """The file of that path.

        Raises:
            ArtifactMissing: there is none.
        """
        for entry in self.files:
            if entry.path == path:
                return entry
        raise ArtifactMissing(
            f"has no file {path}",
            where=f"{self.kind} artifact {self.digest[:12]}",
            hint="look at it with `lmflows show`",
        )

    def parent(self, role: str) -> str:
        """The digest of the parent with that role; raises KeyError when there is none."""
        return {parent.role: parent.digest for parent in self.parents}[role]

    def to_bytes(self) -> bytes:
        """Canonical JSON.

        Raises:
            UnsafeManifest: it is longer than anybody would read.
        """
        data = canonical_json(self.model_dump(mode="json"))
        if len(data) > MAX_BYTES:
            raise UnsafeManifest(
                f"has {len(data)} bytes, more than {MAX_BYTES}",
                where=f"manifest of {len(self.files)} files",
                hint="leave files out, or shorten their names",
            )
        return data

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Manifest:
        """Read a manifest that may come from anywhere.

        Raises:
            UnsafeManifest: it is not well formed, or not in canonical form: its digest would be
                that of other bytes.
        """
        try:
            if len(data) > MAX_BYTES:
                raise ValueError(f"has {len(data)} bytes, more than {MAX_BYTES}")
            manifest = cls.model_validate_json(data)
            if manifest.to_bytes() != data:
                raise ValueError("not in canonical form")
        except (ValueError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
            raise UnsafeManifest(
                _first_problem(error), where=where, hint="do not use this artifact"
            ) from error
        return manifest


def _first_problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


class ModelArtifact(BaseModel):
    """What passes between steps: an artifact's digest, its kind, and the folder its files lie in on
    this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Digest
    kind: Kind
    path: Path

    @property
    def short(self) -> str:
        """The first 12 digits of the digest, for people."""
        return self.digest[:12]
