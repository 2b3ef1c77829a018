"""Garbage collection: removes what nothing needs any more, and in doubt nothing.

It keeps what a ref points to, has pointed to (as far back as the policy says) or would be rolled
back to; what an endpoint of any machine serves, with the evidence and reports about it; everything
young; and all that these come from. The order of deletion makes a kill at any moment harmless:
descendants before what they come from, manifests before blobs, so whatever is left is whole.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

from artifacts.manifest import Manifest
from artifacts.registry import serving
from artifacts.registry.refs import Ref, Registry, Served
from artifacts.store.protocol import Held, Store
from artifacts.store.signatures import SIGNATURES, subject_of
from configs.callbacks import Progress, no_progress
from configs.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    ConfigError,
    LmflowsError,
    UnsafeManifest,
)

BATCH = 16  # manifests that are removed between two looks at the refs


@dataclass(frozen=True)
class Plan:
    """What a collection would remove, and why the rest stays.

    Attributes:
        manifests: of the artifacts that nothing needs, descendants before what they come from.
        blobs: that only these need, or nobody.
        signatures: keys of signatures of artifacts that are gone, or are about to be.
        kept: digests that stay, each with the reason that was found first: a ref, an endpoint, or
            its age.
        kinds: of the artifacts in `manifests`; "damaged" for one whose manifest cannot be read.
    """

    manifests: tuple[Held, ...]
    blobs: tuple[Held, ...]
    signatures: tuple[str, ...]
    kept: dict[str, str]
    kinds: dict[str, str]

    @property
    def freed(self) -> int:
        """Bytes."""
        return sum(held.size for held in (*self.manifests, *self.blobs))


@dataclass
class Collected:
    """What was removed; `spared` were doomed, and somebody has begun to need them meanwhile."""

    manifests: int = 0
    blobs: int = 0
    signatures: int = 0
    leftovers: int = 0
    freed: int = 0
    spared: list[str] = field(default_factory=list)


def plan(
    store: Store,
    *,
    keep_history: int,
    min_age_hours: float,
    forget: Sequence[str] = (),
    now: float | None = None,
) -> Plan:
    """What `collect` would remove at this moment. Changes nothing.

    Args:
        keep_history: entries of each stage's history, before the current one, whose artifacts are
            kept; and as many rollbacks.
        min_age_hours: what was written or touched since is kept: an upload may still be on its way.
        forget: endpoints, each MACHINE/ENDPOINT, that somebody knows to be gone: what they have
            announced counts no more.
        now: Unix time.

    Raises:
        ArtifactDamaged, UnsafeManifest, ArtifactMissing: a ref, an announcement, or a manifest that
            one needs, cannot be read: what it needs cannot be known.
        ConfigError: a number that is none, or nobody to forget.
    """
    forgotten = {endpoint.key for endpoint in serving.named(store, forget)}
    return _Collection(store, keep_history, min_age_hours, forgotten, now).plan()


def collect(
    store: Store,
    *,
    keep_history: int,
    min_age_hours: float,
    forget: Sequence[str] = (),
    now: float | None = None,
    progress: Progress = no_progress,
) -> Collected:
    """Remove what nothing needs; the plan is made anew under the store's lock. Arguments and errors
    as for `plan`.

    A folder lets nobody write meanwhile. On S3 an upload beside us looks again when we have ended
    (`artifacts.store.s3.lease`), and a promotion makes young what it needs, for which the age limit
    should not be below the time that it takes.

    Raises:
        StoreBusy: somebody else collects.
    """
    with store.collecting():
        collection = _Collection(store, keep_history, min_age_hours, set(), now)
        for gone in serving.named(store, forget):
            store.objects.delete(gone.key)
        return collection.carry_out(progress)


class _Collection:
    """One look at a store, and what follows from it."""

    def __init__(
        self,
        store: Store,
        keep_history: int,
        min_age_hours: float,
        forgotten: set[str],
        now: float | None,
    ) -> None:
        # NaN neither: nothing is younger than that
        if not (keep_history >= 0 and 0 <= min_age_hours < math.inf):
            raise ConfigError(
                f"keep_history {keep_history}, min_age_hours {min_age_hours}",
                where="garbage collection",
                hint="both are finite and not negative",
            )
        self.store = store
        self.keep_history = keep_history
        self.forgotten = forgotten
        self.limit = (time.time() if now is None else now) - min_age_hours * 3600
        self.known: dict[str, Manifest] = {}  # manifests do not change
        self.held: dict[str, Held] = {}

    def plan(self) -> Plan:
        self.held = {held.name: held for held in self.store.inventory("manifests")}
        kept = self._kept()
        doomed = [digest for digest in self.held if digest not in kept]
        used = {
            entry.sha256
            for digest in kept
            if digest in self.held
            for entry in self._manifest(digest).files
        }
        manifests = {digest: self._readable(digest) for digest in doomed}
        return Plan(
            manifests=tuple(self.held[digest] for digest in _descendants_first(manifests)),
            blobs=tuple(sorted(self._unused(used), key=lambda held: held.name)),
            signatures=tuple(self._signatures(kept)),
            kept=kept,
            kinds={
                digest: "damaged" if manifest is None else manifest.kind
                for digest, manifest in manifests.items()
            },
        )

    def carry_out(self, progress: Progress) -> Collected:
        wanted = self.plan()
        done = Collected()
        spared: set[str] = set()
        for start in range(0, len(wanted.manifests), BATCH):
            progress(0.5 * start / len(wanted.manifests), "manifests")
            # somebody may need one of them since the plan was made
            needed = {*self._kept_by_refs(), *self._kept_by_endpoints()}
            for held in wanted.manifests[start : start + BATCH]:
                if held.name in needed or held.name in spared:
                    done.spared.append(held.name)
                elif self.store.discard("manifests", held.name, unless_after=self.limit):
                    done.manifests += 1
                    done.freed += held.size
                else:
                    # touched: it is about to be promoted or was pushed again, and needs what it
                    # comes from
                    done.spared.append(held.name)
                    spared |= self._closure([held.name], strict=False)
        self.held = {held.name: held for held in self.store.inventory("manifests")}
        # in doubt, no blob goes
        used = {entry.sha256 for digest in self.held for entry in self._manifest(digest).files}
        unused = self._unused(used)
        for number, held in enumerate(unused):
            progress(0.5 + 0.5 * number / len(unused), "blobs")
            if self.store.discard("blobs", held.name, unless_after=self.limit):
                done.blobs += 1
                done.freed += held.size
        for key in self._signatures(self.held):
            if not self.store.has(subject_of(key)):  # it may have come meanwhile
                self.store.objects.delete(key)
                done.signatures += 1
        done.leftovers = self.store.clear_leftovers(older_than=self.limit)
        progress(1.0, "done")
        return done

    # -- what is needed

    def _kept(self) -> dict[str, str]:
        """Every digest that must stay, with the reason."""
        kept = self._kept_by_refs()
        for digest, why in self._kept_by_endpoints().items():
            kept.setdefault(digest, why)
        young = [held.name for held in self.held.values() if held.modified > self.limit]
        for digest in self._closure(young, strict=False):
            kept.setdefault(digest, "young, or what something young comes from")
        return kept

    def _kept_by_refs(self) -> dict[str, str]:
        """What the refs need at this moment."""
        kept: dict[str, str] = {}
        for ref in Registry(self.store.objects).refs():
            name = f"{ref.model}/{ref.stage}"
            needed = needed_by(ref, self.keep_history)
            current = _parts_of(needed[:1])
            # what is not there was collected earlier, with a shorter history
            earlier = [digest for digest in _parts_of(needed[1:]) if self._has(digest)]
            for digests, why in ((current, name), (earlier, f"the history of {name}")):
                for digest in self._closure(digests, strict=True):
                    kept.setdefault(digest, why)
        return kept

    def _kept_by_endpoints(self) -> dict[str, str]:
        """What is served at this moment, with what is said of it."""
        kept: dict[str, str] = {}
        for endpoint in serving.everywhere(self.store):
            if endpoint.key in self.forgotten or not self._has(endpoint.digest):
                continue
            about = [digest for digest in self.held if self._judges(digest, endpoint.digest)]
            for digest in self._closure([endpoint.digest, *about], strict=True):
                kept.setdefault(digest, f"endpoint {endpoint.endpoint} on {endpoint.machine}")
        return kept

    def _judges(self, digest: str, candidate: str) -> bool:
        """Whether an artifact is evidence or a report about another one."""
        manifest = self._readable(digest)
        if manifest is None or manifest.kind not in ("evidence", "report"):
            return False
        roles = {(parent.role, parent.digest) for parent in manifest.parents}
        return ("candidate", candidate) in roles

    def _closure(self, digests: Iterable[str], *, strict: bool) -> set[str]:
        """Artifacts and all they come from. `strict`: each must be there; else what is missing is
        passed over.

        Nothing that is there may be unreadable: it could name anything.
        """
        found: set[str] = set()
        stack = list(digests)
        while stack:
            digest = stack.pop()
            if digest not in found and (strict or self._has(digest)):
                found.add(digest)
                stack += [parent.digest for parent in self._manifest(digest).parents]
        return found

    def _has(self, digest: str) -> bool:
        return digest in self.held or self.store.has(digest)

    def _manifest(self, digest: str) -> Manifest:
        if digest not in self.known:
            try:
                self.known[digest] = self.store.manifest(digest)
            except (ArtifactDamaged, ArtifactMissing, UnsafeManifest) as error:
                raise type(error)(
                    f"{error.message}: what it needs cannot be known, so nothing is collected",
                    where=error.where,
                    hint=f"`lmflows registry push {digest[:12]}` from a machine that has it whole",
                ) from error
        return self.known[digest]

    def _readable(self, digest: str) -> Manifest | None:
        """The manifest of what nobody needs; such a one may be damaged."""
        try:
            return self._manifest(digest)
        except LmflowsError:
            return None

    # -- what is not

    def _unused(self, used: set[str]) -> list[Held]:
        """Blobs that are old, and none of those that are used."""
        return [
            held
            for held in self.store.inventory("blobs")
            if held.name not in used and held.modified <= self.limit
        ]

    def _signatures(self, kept: Iterable[str]) -> list[str]:
        """Keys of the signatures of everything else."""
        stay = set(kept)
        return [
            key
            for key in self.store.objects.keys(SIGNATURES)
            if re.fullmatch("[0-9a-f]{64}", subject_of(key)) and subject_of(key) not in stay
        ]


def _descendants_first(manifests: dict[str, Manifest | None]) -> list[str]:
    """Digests in the order of removal; a manifest that cannot be read (None) names no parents."""
    graph = {}
    for digest, manifest in manifests.items():
        parents = () if manifest is None else manifest.parents
        graph[digest] = {parent.digest for parent in parents if parent.digest in manifests}
    return list(TopologicalSorter(graph).static_order())[::-1]


def _parts_of(wanted: Iterable[Served]) -> list[str]:
    """The artifacts and the reports of what stages serve."""
    return [digest for served in wanted for digest in (served.digest, served.report)]


def needed_by(ref: Ref, keep_history: int) -> list[Served]:
    """What a stage must keep: what it points to, first, then its last entries, and where as many
    rollbacks would lead."""
    if not ref.entries:
        return []
    newest = len(ref.entries) - 1
    recent = range(newest, max(-1, newest - 1 - keep_history), -1)
    undone = []
    number = ref.origin(newest)
    for _ in range(keep_history):
        number = ref.origin(number - 1)
        if number < 0:
            break
        undone.append(number)
    return list(dict.fromkeys(ref.entries[number].served for number in (*recent, *undone)))
