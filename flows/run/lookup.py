"""What people name by few characters, found: artifacts by the first digits of their digest, models,
engines and variants by their names; and who asks.

Plain functions over this machine's stores; they know neither Prefect nor a terminal.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import psutil
from pydantic import TypeAdapter, ValidationError

from artifacts.manifest import Manifest
from artifacts.store.find import match
from artifacts.store.local import LocalStore
from configs import paths
from configs.engines import BY_NAME, Engine, names_of
from configs.errors import ArtifactMissing, ConfigError
from configs.location import S3
from configs.variants import Variant, weights_and_kv
from tasks.checkpoints.files import read_config


def whoami() -> str:
    """Who does something here, for the history: user@machine."""
    return f"{psutil.Process().username()}@{socket.gethostname()}"


def stores() -> list[LocalStore]:
    """The workspace, and every folder that a run on this machine has uploaded to (S3 is `lmflows
    registry`'s business)."""
    folders = (Path(location) for location in paths.known_stores() if not location.startswith(S3))
    return [LocalStore(paths.workspace()), *map(LocalStore, folders)]


def find(digest: str) -> LocalStore:
    """The first store that has an artifact."""
    for store in stores():
        if store.manifest_path(digest).exists():
            return store
    raise ArtifactMissing(
        f"no artifact {digest}", where=str(paths.home()), hint="`lmflows ls` shows what there is"
    )


def resolve(prefix: str) -> tuple[LocalStore, str]:
    """The store that has the one artifact whose digest starts with `prefix`, and the digest."""
    found = match(
        prefix,
        (digest for store in stores() for digest in store.digests()),
        where=str(paths.home()),
    )
    return find(found), found


@dataclass(frozen=True)
class FoundModel:
    """A model's folder; with its digest and manifest if it is an artifact."""

    folder: Path
    digest: str | None = None
    manifest: Manifest | None = None

    @property
    def label(self) -> str:
        return self.digest[:12] if self.digest else self.folder.name


def find_model(model: str) -> FoundModel:
    """A model: `model` is a folder, or the first digits of an artifact's digest.

    Raises:
        ArtifactMissing: it is neither.
        SourceError: the folder, or the artifact, is no model.
    """
    if Path(model).is_dir():
        found = FoundModel(Path(model).absolute())
    else:
        store, digest = resolve(model)
        found = FoundModel(store.open(digest).path, digest, store.manifest(digest))
    read_config(found.folder)
    return found


def engine_of(name: str, **options: Any) -> Engine:
    """The engine of that name; of the options those that it has.

    Raises:
        ConfigError: there is no such engine.
        ValidationError: an option has a value that the engine does not allow.
    """
    if name not in BY_NAME:
        raise ConfigError(
            f"no engine {name!r}", where="--engine", hint=f"one of {', '.join(BY_NAME)}"
        )
    kind = BY_NAME[name]
    fields = {key: value for key, value in options.items() if key in kind.model_fields}
    return cast("Engine", kind.model_validate({"name": name, **fields}))


def variant_of(name: str, engine: Engine) -> Variant:
    """The variant of that name, for an engine that can run it."""
    try:
        variant: Variant = TypeAdapter(Variant).validate_python(name)
    except ValidationError:
        raise ConfigError(
            f"no variant {name!r}", where="--variant", hint=f"one of {', '.join(get_args(Variant))}"
        ) from None
    problem = engine.refuses_kv(variant)
    if problem is not None:
        _, bits = weights_and_kv(variant)
        raise ConfigError(
            f"{name}: {problem}",
            where="--variant",
            hint=f"use engine {names_of(lambda other: bits in other.kv_bits)}",
        )
    return variant
