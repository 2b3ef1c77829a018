"""What a report is made of: everything that a run or a comparison has found, read from its
artifacts and judged, in one plain `ReportData`.

The page, its tables and figures, and the markdown are written from it. Decides nothing: that is
`tasks.quality.verdict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from artifacts.manifest import ModelArtifact
from artifacts.records.evidence import Evidence, read_evidence
from artifacts.records.load_results import LoadReport, read_load
from artifacts.records.measurement import Measurement, read_measurement
from artifacts.records.outcomes import Attempt, RunOutcome, VariantOutcome
from artifacts.records.report import Verdict
from artifacts.store.local import LocalStore
from configs.errors import ArtifactMissing
from configs.evaluation import Evaluate
from tasks.quality.verdict import judge

DEEPEST = 8  # generations of the lineage; a manifest may name anything as its parent


@dataclass(frozen=True)
class Subject:
    """One variant with what its artifacts hold.

    Attributes:
        label: its name, with its digest where two have the same name.
        is_parent: whether the others are compared with it.
    """

    label: str
    model: ModelArtifact
    model_bytes: int
    measurement: Measurement | None
    evidence: Evidence | None
    verdict: Verdict | None
    load: LoadReport | None
    problem: str | None
    is_parent: bool


@dataclass(frozen=True)
class JudgedAttempt:
    """One attempt at a candidate: what was changed in the recipe, and the verdict."""

    change: str
    model: ModelArtifact
    model_bytes: int
    evidence: Evidence
    verdict: Verdict
    kept: bool


@dataclass(frozen=True)
class Ancestor:
    """An artifact in the lineage, and its part in what was made from it. `again`: its own parents
    were shown before."""

    role: str
    kind: str
    digest: str
    recipe: dict[str, str]
    parents: tuple[Ancestor, ...] = ()
    again: bool = False


@dataclass(frozen=True)
class ReportData:
    """All that a report shows.

    Attributes:
        evidence, verdict: about the variant that is served.
        parent: what it is compared with; None if no variant of the run is that artifact.
        recipe: of the served variant's artifact, as dotted keys and text.
    """

    run: RunOutcome
    served: Subject
    parent: Subject | None
    evidence: Evidence
    verdict: Verdict
    subjects: tuple[Subject, ...]
    attempts: tuple[JudgedAttempt, ...]
    recipe: dict[str, str]
    lineage: Ancestor

    @property
    def itself(self) -> bool:
        """Whether the baseline itself is what the verdict is about: fp16 is served."""
        return self.served.is_parent

    @property
    def parent_label(self) -> str:
        return self.parent.label if self.parent else f"artifact {self.evidence.parent[:12]}"


def collect(run: RunOutcome, store: LocalStore) -> ReportData:
    """Read and judge everything that the run names.

    Raises:
        ValueError: the variant that the verdict is about has no evidence.
    """
    served, evidence_artifact = _served(run)
    evidence = read_evidence(evidence_artifact)
    parent = _parent_place(run, evidence)
    subjects = tuple(
        _subject(outcome, run, is_parent=place == parent)
        for place, outcome in enumerate(run.variants)
    )
    chosen = run.variants[served].model
    return ReportData(
        run=run,
        served=subjects[served],
        parent=None if parent is None else subjects[parent],
        evidence=evidence,
        verdict=judge(evidence, evidence_artifact.digest, run.config),
        subjects=subjects,
        attempts=tuple(_judged(attempt, run.config, chosen) for attempt in run.attempts),
        recipe=recipe_of(chosen.digest, store),
        lineage=ancestry(evidence_artifact.digest, "evidence", store),
    )


def _served(run: RunOutcome) -> tuple[int, ModelArtifact]:
    """Place and evidence of what the verdict is about: the last one of its name that has some."""
    for place, outcome in reversed([*enumerate(run.variants)]):
        if outcome.variant == run.served and outcome.evidence:
            return place, outcome.evidence
    raise ValueError(f"no evidence about {run.served}")


def _parent_place(run: RunOutcome, evidence: Evidence) -> int | None:
    """A place and no value: a comparison of an artifact with itself has equal ones."""
    for place, outcome in enumerate(run.variants):
        if outcome.model.digest == evidence.parent and outcome.problem is None:
            return place
    return None


def _subject(outcome: VariantOutcome, run: RunOutcome, *, is_parent: bool) -> Subject:
    names = [other.variant for other in run.variants]
    alone = names.count(outcome.variant) == 1
    evidence = verdict = None
    if outcome.evidence:
        evidence = read_evidence(outcome.evidence)
        verdict = judge(evidence, outcome.evidence.digest, run.config)
    return Subject(
        label=outcome.variant if alone else f"{outcome.variant} {outcome.model.short}",
        model=outcome.model,
        model_bytes=outcome.model_bytes,
        measurement=read_measurement(outcome.measurement) if outcome.measurement else None,
        evidence=evidence,
        verdict=verdict,
        load=read_load(outcome.load) if outcome.load else None,
        problem=outcome.problem,
        is_parent=is_parent,
    )


def _judged(attempt: Attempt, config: Evaluate, chosen: ModelArtifact) -> JudgedAttempt:
    evidence = read_evidence(attempt.evidence)
    return JudgedAttempt(
        change=attempt.change,
        model=attempt.candidate,
        model_bytes=attempt.model_bytes,
        evidence=evidence,
        verdict=judge(evidence, attempt.evidence.digest, config),
        kept=attempt.candidate.digest == chosen.digest,
    )


def recipe_of(digest: str, store: LocalStore) -> dict[str, str]:
    """An artifact's recipe as flat text; empty if it has none, or lies in a store elsewhere."""
    try:
        return dict(_flat(store.manifest(digest).recipe))
    except ArtifactMissing:
        return {}


def ancestry(digest: str, role: str, store: LocalStore) -> Ancestor:
    """An artifact and what it was made from, each one's parents once; an artifact that is not in
    the store is a leaf."""
    seen: set[str] = set()

    def walk(digest: str, role: str, depth: int) -> Ancestor:
        try:
            manifest = store.manifest(digest)
        except ArtifactMissing:
            return Ancestor(role, "not in this store", digest, {})
        again = digest in seen and bool(manifest.parents)
        if again or depth == DEEPEST:
            return Ancestor(role, manifest.kind, digest, {}, again=again)
        seen.add(digest)
        return Ancestor(
            role,
            manifest.kind,
            digest,
            dict(_flat(manifest.recipe)),
            tuple(walk(parent.digest, parent.role, depth + 1) for parent in manifest.parents),
        )

    return walk(digest, role, 0)


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """A recipe as lines of dotted keys, sorted; what is empty is left out."""
    for key, item in sorted(value.items()):
        if isinstance(item, Mapping):
            yield from _flat(item, f"{before}{key}.")
        elif isinstance(item, bool):
            yield f"{before}{key}", "yes" if item else "no"
        elif item is not None and item != []:
            yield f"{before}{key}", str(item)
