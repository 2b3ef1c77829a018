"""Where an artifact comes from, and what is known of it: the tree that `lmflows registry show`
prints.

Reads manifests, and the one small file with the facts of a measurement, a load test, evidence or a
report. What lies in a store may come from anywhere: a parent that is missing, or a file that is not
what it should be, is shown as such and is no error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from artifacts.manifest import Kind, Manifest
from artifacts.records.evidence import EVIDENCE
from artifacts.records.load_results import LOAD
from artifacts.records.measurement import MEASUREMENT
from artifacts.records.report import VERDICT
from artifacts.store.protocol import Store
from configs.errors import ArtifactDamaged, ArtifactMissing, LmflowsError, UnsafeManifest

# generations; a pipeline makes about eight, a manifest from outside may be the last of ten thousand
DEEPEST = 64
MAX_RECORD_BYTES = 256 << 20  # of a file with facts; a load test's has every request
FACTS = (MEASUREMENT, LOAD, EVIDENCE, VERDICT)  # the files that have some
LIBRARIES = ("lmdeploy", "python", "torch", "transformers")  # of an engine
# Where a recipe names what made this very artifact; a rewritten checkpoint keeps its parent's
# recipe, and adds to it.
MADE_WITH = ("repacked_with", "kept_with", "padded_with", "versions")


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


@dataclass(frozen=True)
class Node:
    """One artifact of the tree; its children are its parents.

    Attributes:
        role: its part in what was made from it (`model`, `texts`, `measurement`, ...); empty for
            the artifact that was asked for.
        kind: None if the store does not have it, or what it has cannot be read: `missing` says why.
        size: bytes of its files.
        recipe: as flat text: "source.repo" -> "internlm/internlm2-chat-1_8b".
        again: it stands further up already, with its parents; here without.
        cut: it has parents, but is DEEPEST generations down.
    """

    role: str
    digest: str
    kind: Kind | None
    size: int
    files: int
    recipe: dict[str, str]
    facts: Facts
    parents: tuple[Node, ...] = ()
    again: bool = False
    cut: bool = False
    missing: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; at most DEEPEST levels deep."""
        return asdict(self)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        """Every node with its depth, each before its parents: the lines of a printed tree."""
        yield depth, self
        for parent in self.parents:
            yield from parent.walk(depth + 1)


@dataclass(frozen=True)
class Mention:
    """An artifact that names another one as its parent: a report or evidence about it, a
    measurement of it, or what was made from it."""

    digest: str
    kind: Kind
    role: str
    facts: Facts

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def tree(store: Store, digest: str) -> Node:
    """An artifact with all its ancestors, each expanded once.

    Raises:
        ArtifactMissing: the store has no such artifact (a missing parent is a node of the tree).
        ArtifactDamaged, UnsafeManifest: its manifest is not to be trusted.
    """
    store.manifest(digest)
    expanded: set[str] = set()

    def node(digest: str, role: str, depth: int) -> Node:
        try:
            manifest = store.manifest(digest)
        except (ArtifactMissing, ArtifactDamaged, UnsafeManifest) as error:
            why = "not in this store" if isinstance(error, ArtifactMissing) else str(error)
            return Node(role, digest, None, 0, 0, {}, Facts({}, {}), missing=why)
        again, cut = digest in expanded, depth >= DEEPEST and bool(manifest.parents)
        if not again and not cut:
            expanded.add(digest)
        parents = (
            ()
            if again or cut
            else tuple(node(parent.digest, parent.role, depth + 1) for parent in manifest.parents)
        )
        known = facts(store, manifest)
        # it rests on what was measured there
        if manifest.kind in ("evidence", "report") and not known.hardware:
            known = replace(
                known,
                hardware=next(
                    (parent.facts.hardware for parent in parents if parent.facts.hardware), {}
                ),
            )
        return Node(
            role,
            digest,
            manifest.kind,
            manifest.size,
            len(manifest.files),
            dict(_flat(_plain(manifest.recipe))),
            known,
            parents,
            again,
            cut and not again,
        )

    return node(digest, "", 0)


def about(store: Store, digest: str) -> list[Mention]:
    """Every artifact of the store that names this one as a parent, newest first: its reports with
    their verdicts among them.

    Reads every manifest of the store.
    """
    found = []
    for other in reversed(store.digests()):
        try:
            manifest = store.manifest(other)
        except LmflowsError:
            continue  # it can say nothing of anybody
        if roles := [parent.role for parent in manifest.parents if parent.digest == digest]:
            found.append(Mention(other, manifest.kind, ", ".join(roles), facts(store, manifest)))
    return found


def facts(store: Store, manifest: Manifest) -> Facts:
    """What an artifact says of versions, hardware and verdict, in its recipe and in its file of
    facts."""
    made = next((_texts(manifest.recipe[key]) for key in MADE_WITH if manifest.recipe.get(key)), {})
    names = {entry.path for entry in manifest.files}
    name = next((name for name in FACTS if name in names), None)
    if name is None or manifest.kind not in ("measurement", "evidence", "report"):
        return Facts(made, {})
    try:
        record = _read(store, manifest, name)
        if name == LOAD:
            environment = _mapping(next(iter(record["results"]))["environment"])
            # its options are there, too
            engine = {
                key: value
                for key, value in _texts(environment.get("engine")).items()
                if key in LIBRARIES
            }
            return Facts(
                made | _texts(environment.get("client")) | engine,
                _texts(environment.get("fingerprint")),
                _text(record.get("variant")),
            )
        return Facts(
            made | _texts(record.get("versions")),
            _texts(record.get("hardware")),
            _text(record.get("variant")),
            _text(record.get("outcome")),
            tuple(str(reason) for reason in record.get("reasons") or ()),
        )
    except (
        LmflowsError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        StopIteration,
        RecursionError,
    ) as error:
        return Facts(
            made,
            {},
            damage=(
                f"{name}: {error}"
                if isinstance(error, LmflowsError)
                else f"{name} is not what a {manifest.kind} has"
            ),
        )


def _read(store: Store, manifest: Manifest, name: str) -> Mapping[str, Any]:
    if (size := manifest.entry(name).size) > MAX_RECORD_BYTES:
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


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what `Facts.versions` tells."""
    made = next((key for key in MADE_WITH if recipe.get(key)), None)
    return {key: value for key, value in recipe.items() if key != made}


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested mappings by dotted key; what is empty is left out. A manifest is nested at
    most as deep as it may be."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{key}.")
        elif item not in (None, [], ""):
            yield (
                f"{prefix}{key}",
                (", ".join(map(str, item)) if isinstance(item, list) else str(item)),
            )
