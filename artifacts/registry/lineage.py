"""Where an artifact comes from: the tree that `lmflows registry show` prints.

Reads manifests, and what each artifact says of itself (`artifacts.registry.facts`). What lies in a
store may come from anywhere: a parent that is missing is shown as such and is no error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from artifacts.manifest import Kind
from artifacts.registry.facts import Facts, facts_of, maker_in
from artifacts.store.protocol import Store
from configs.errors import ArtifactDamaged, ArtifactMissing, LmflowsError, UnsafeManifest

# generations; a pipeline makes about eight, a manifest from outside may be the last of ten thousand
DEEPEST = 64


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
        again = digest in expanded
        cut = not again and depth >= DEEPEST and bool(manifest.parents)
        parents: tuple[Node, ...] = ()
        if not again and not cut:
            expanded.add(digest)
            parents = tuple(
                node(parent.digest, parent.role, depth + 1) for parent in manifest.parents
            )
        facts = facts_of(store, manifest)
        if manifest.kind in ("evidence", "report") and not facts.hardware:
            facts = replace(facts, hardware=_hardware_of(parents))
        return Node(
            role=role,
            digest=digest,
            kind=manifest.kind,
            size=manifest.size,
            files=len(manifest.files),
            recipe=dict(_flat(_plain(manifest.recipe))),
            facts=facts,
            parents=parents,
            again=again,
            cut=cut,
        )

    return node(digest, "", 0)


def _hardware_of(parents: tuple[Node, ...]) -> dict[str, str]:
    """The hardware of the measurements that something rests on."""
    for parent in parents:
        if parent.facts.hardware:
            return parent.facts.hardware
    return {}


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
        roles = [parent.role for parent in manifest.parents if parent.digest == digest]
        if roles:
            facts = facts_of(store, manifest)
            found.append(Mention(other, manifest.kind, ", ".join(roles), facts))
    return found


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what `Facts.versions` tells."""
    maker = maker_in(recipe)
    return {key: value for key, value in recipe.items() if key != maker}


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested mappings by dotted key; what is empty is left out. A manifest is nested at
    most as deep as it may be."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{key}.")
        elif isinstance(item, list) and item:
            yield f"{prefix}{key}", ", ".join(map(str, item))
        elif item not in (None, [], ""):
            yield f"{prefix}{key}", str(item)
