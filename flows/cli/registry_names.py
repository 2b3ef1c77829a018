"""What the words of `lmflows registry` name: a store, a stage of a model, an artifact of the store;
and the options that its commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifacts.registry.refs import STAGES, Ref, Registry, Stage
from artifacts.store.open import open_store
from artifacts.store.protocol import Store
from configs.errors import ArtifactMissing, ConfigError
from configs.location import S3, normal
from configs.policy import load_policy

StoreAt = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="LOCATION",
        help="a folder or s3://BUCKET/PREFIX; else the policy's, else this machine's",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="for a program")]


def opened(location: str | None, *, new: bool = False) -> Store:
    """The store that is meant. `new`: one that does not exist yet is made.

    Raises:
        ConfigError: it cannot be one, or there is no such folder.
    """
    # an unset variable of the shell; the policy's store is meant by not naming one
    if location == "":
        raise ConfigError("is empty", where="--store", hint="name a store, or leave --store out")
    try:
        where = normal(load_policy().store_for(location))
    except ValueError as error:
        raise ConfigError(
            str(error),
            where="the store's location",
            hint="for example /srv/models or s3://bucket/models",
        ) from None
    if location and not new and not where.startswith(S3) and not Path(where).is_dir():
        raise ConfigError(
            "no such folder", where=f"--store {where}", hint="`lmflows registry push` makes a store"
        )
    return open_store(where)


def ref_of(store: Store, model: str, stage: str) -> Ref:
    """A stage of a model; ConfigError if there can be none of these names."""
    from artifacts.registry.names import check_names

    check_names(model, stage)
    known: Stage = next(name for name in STAGES if name == stage)
    return Registry(store.objects).read(model, known).ref


def refs_named(store: Store, what: str) -> list[Ref]:
    """MODEL/STAGE, or every stage of MODEL; none if `what` can be no model's name."""
    model, slash, stage = what.partition("/")
    if slash:
        return [ref_of(store, model, stage)]
    try:
        return [ref_of(store, model, stage) for stage in STAGES]
    except ConfigError:
        return []


def digest_of(store: Store, what: str) -> str:
    """The artifact that DIGEST or MODEL/STAGE names."""
    from artifacts.store.find import find

    if "/" not in what:
        return find(store, what)
    [ref] = refs_named(store, what)
    if ref.current is None:
        raise points_to_nothing(what)
    return ref.current.digest


def points_to_nothing(what: str) -> ArtifactMissing:
    """The error of a stage that has nothing."""
    return ArtifactMissing(
        "points to nothing", where=what, hint="`lmflows registry ls` shows what there is"
    )
