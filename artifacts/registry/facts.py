"""What an artifact says of itself: versions, hardware, variant and verdict.

They stand in its recipe, and in the one small file with the facts of a measurement, a load test,
evidence or a report. What lies in a store may come from anywhere: a file that is not what it should
be is shown as such and is no error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from artifacts.manifest import Manifest
from artifacts.records.evidence import EVIDENCE
from artifacts.records.load_results import LOAD
from artifacts.records.measurement import MEASUREMENT
from artifacts.records.report import VERDICT
from artifacts.store.protocol import Store
from configs.errors import ArtifactDamaged, LmflowsError

MAX_RECORD_BYTES = 256 << 20  # of a file with facts; a load test's has every request
FILES = (MEASUREMENT, LOAD, EVIDENCE, VERDICT)  # that have facts
LIBRARIES = ("lmdeploy", "python", "torch", "transformers")  # of an engine
# Where a recipe names what made this very artifact; a rewritten checkpoint keeps its parent's
# recipe, and adds to it.
MADE_WITH = ("repacked_with", "kept_with", "padded_with", "versions")
# what a file that is not what it should be makes us raise
NOT_AS_EXPECTED = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    StopIteration,
    RecursionError,
)


@dataclass(frozen=True)
class Facts:
    """What the files of an artifact say of it.

    Attributes:
        versions: of the libraries that made it, or that measured.
        hardware: that it was measured on, in a tree also of evidence and reports; of a model empty,
            for it does not depend on it.
        variant: that was measured or judged.
        verdict: PASS, FAIL, INCONCLUSIVE or ANOMALOUS, of a report. `reasons`: in plain words.
        damage: what could not be read, in words.
    """

    versions: dict[str, str]
    hardware: dict[str, str]
    variant: str | None = None
    verdict: str | None = None
    reasons: tuple[str, ...] = ()
    damage: str | None = None


def facts_of(store: Store, manifest: Manifest) -> Facts:
    """What an artifact says in its recipe and in its file of facts."""
    maker = maker_in(manifest.recipe)
    made_with = {} if maker is None else _texts(manifest.recipe[maker])
    names = {entry.path for entry in manifest.files}
    name = next((name for name in FILES if name in names), None)
    if name is None or manifest.kind not in ("measurement", "evidence", "report"):
        return Facts(made_with, {})
    try:
        record = _read(store, manifest, name)
        facts = _facts_of_load_test(record) if name == LOAD else _facts_of_record(record)
    except LmflowsError as error:
        return Facts(made_with, {}, damage=f"{name}: {error}")
    except NOT_AS_EXPECTED:
        return Facts(made_with, {}, damage=f"{name} is not what a {manifest.kind} has")
    return replace(facts, versions=made_with | facts.versions)


def maker_in(recipe: Mapping[str, Any]) -> str | None:
    """The key of a recipe that names the libraries which made the artifact; None if there is
    none."""
    return next((key for key in MADE_WITH if recipe.get(key)), None)


def _facts_of_load_test(record: Mapping[str, Any]) -> Facts:
    environment = _mapping(next(iter(record["results"]))["environment"])
    engine = _texts(environment.get("engine"))
    # its options are there, too
    libraries = {name: version for name, version in engine.items() if name in LIBRARIES}
    return Facts(
        versions=_texts(environment.get("client")) | libraries,
        hardware=_texts(environment.get("fingerprint")),
        variant=_text(record.get("variant")),
    )


def _facts_of_record(record: Mapping[str, Any]) -> Facts:
    return Facts(
        versions=_texts(record.get("versions")),
        hardware=_texts(record.get("hardware")),
        variant=_text(record.get("variant")),
        verdict=_text(record.get("outcome")),
        reasons=tuple(str(reason) for reason in record.get("reasons") or ()),
    )


def _read(store: Store, manifest: Manifest, name: str) -> Mapping[str, Any]:
    size = manifest.entry(name).size
    if size > MAX_RECORD_BYTES:
        raise ArtifactDamaged(
            f"{size} bytes are too many", where=name, hint="do not use this artifact"
        )
    return _mapping(json.loads(store.read(manifest.digest, name)))


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("not a mapping")
    return value


def _texts(value: Any) -> dict[str, str]:
    return {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
