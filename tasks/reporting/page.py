"""The report's page: everything that a run or a comparison has found, in one HTML file that needs
nothing else.

`collect` reads the artifacts of a run into one plain `Story`, which the page and the markdown
tell; `render` makes the page. What a model has said is hostile input: it is shown, never obeyed.
Decides nothing: that is `tasks.quality.verdict`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from artifacts.manifest import ModelArtifact
from artifacts.records.evidence import Evidence, read_evidence
from artifacts.records.load_results import LoadReport, read_load
from artifacts.records.measurement import Measurement, read_measurement
from artifacts.records.report import Verdict
from artifacts.store.local import LocalStore
from configs.errors import ArtifactMissing
from configs.units import size
from tasks.quality.verdict import judge
from tasks.reporting.markdown import percent, step_rows, task_rows, variant_rows

if TYPE_CHECKING:
    from artifacts.records.outcomes import RunOutcome, VariantOutcome
    from tasks.reporting.plots import Plot

WIDEST_CELL = 28  # characters that a cell shows in one line
# of the table of variants; the page has a table of its own for them
SPEEDS = ("prefill tokens/s", "decode tokens/s")
LONGEST_TEXT = 4000  # characters of an answer that the page shows
DEEPEST = 8  # generations of the lineage; a manifest may name anything as its parent
SIGNS = {"PASS": "✓", "FAIL": "✕", "INCONCLUSIVE": "?", "ANOMALOUS": "!"}


@dataclass(frozen=True)
class Subject:
    """One variant with what its artifacts hold. `label` is its name, with its digest where two have
    the same name."""

    label: str
    model: ModelArtifact
    model_bytes: int
    measurement: Measurement | None
    evidence: Evidence | None
    verdict: Verdict | None
    load: LoadReport | None
    problem: str | None
    parent: bool


@dataclass(frozen=True)
class Rung:
    """One attempt of the repair ladder, judged."""

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
class Story:
    """All that a report tells."""

    run: RunOutcome
    served: Subject
    parent: Subject | None
    evidence: Evidence
    verdict: Verdict
    subjects: tuple[Subject, ...]
    rungs: tuple[Rung, ...]
    recipe: dict[str, str]
    lineage: Ancestor

    @property
    def itself(self) -> bool:
        """Whether the baseline itself is what the verdict is about: fp16 is served."""
        return self.served.parent

    @property
    def parent_label(self) -> str:
        return self.parent.label if self.parent else f"artifact {self.evidence.parent[:12]}"


def collect(run: RunOutcome, store: LocalStore) -> Story:
    """Read and judge everything that the run names.

    Raises:
        ValueError: the variant that the verdict is about has no evidence.
    """
    chosen = next(
        (item for item in reversed(run.variants) if item.variant == run.served and item.evidence),
        None,
    )
    if chosen is None or chosen.evidence is None:
        raise ValueError(f"no evidence about {run.served}")
    evidence = read_evidence(chosen.evidence)
    baseline = next(
        (
            item
            for item in run.variants
            if item.model.digest == evidence.parent and item.problem is None
        ),
        None,
    )
    subjects = tuple(_subject(item, run, parent=item is baseline) for item in run.variants)
    rungs = []
    for attempt in run.attempts:
        found = read_evidence(attempt.evidence)
        rungs.append(
            Rung(
                attempt.change,
                attempt.candidate,
                attempt.model_bytes,
                found,
                judge(found, attempt.evidence.digest, run.config),
                kept=attempt.candidate.digest == chosen.model.digest,
            )
        )
    return Story(
        run=run,
        served=subjects[_place(chosen, run.variants)],
        evidence=evidence,
        parent=subjects[_place(baseline, run.variants)] if baseline else None,
        verdict=judge(evidence, chosen.evidence.digest, run.config),
        subjects=subjects,
        rungs=tuple(rungs),
        recipe=recipe_of(chosen.model.digest, store),
        lineage=ancestry(chosen.evidence.digest, "evidence", store),
    )


def _subject(item: VariantOutcome, run: RunOutcome, *, parent: bool) -> Subject:
    evidence = read_evidence(item.evidence) if item.evidence else None
    alone = [other.variant for other in run.variants].count(item.variant) == 1
    return Subject(
        label=item.variant if alone else f"{item.variant} {item.model.short}",
        model=item.model,
        model_bytes=item.model_bytes,
        measurement=read_measurement(item.measurement) if item.measurement else None,
        evidence=evidence,
        verdict=(
            judge(evidence, item.evidence.digest, run.config)
            if evidence and item.evidence
            else None
        ),
        load=read_load(item.load) if item.load else None,
        problem=item.problem,
        parent=parent,
    )


def _place(wanted: VariantOutcome, variants: Sequence[VariantOutcome]) -> int:
    """By identity: a comparison of an artifact with itself has equal ones."""
    return next(place for place, item in enumerate(variants) if item is wanted)


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


# -- in plain words


def headline(story: Story) -> str:
    """The verdict in one sentence."""
    candidate, parent = story.served.label, story.parent_label
    if story.itself and story.verdict.outcome == "PASS":
        return f"{candidate} is the baseline itself: nothing was quantized, so nothing was lost."
    return {
        "PASS": (
            f"{candidate} may stand in for {parent}: what it loses is within the margin that was"
            " set."
        ),
        "FAIL": f"{candidate} may not stand in for {parent}: it is not good enough.",
        "INCONCLUSIVE": (
            f"It is open whether {candidate} may stand in for {parent}: too little was measured to"
            " say."
        ),
        "ANOMALOUS": (
            f"Nothing can be said of {candidate} yet: the measurement itself cannot be right."
        ),
    }[story.verdict.outcome]


def explanation(story: Story) -> str:
    """What the verdict rests on, in words for somebody who has never seen a nat; empty without an
    interval."""
    difference = story.verdict.difference
    if difference is None or story.itself:
        return ""
    ratio, low, high = difference.ratio
    measured = (
        f"On {difference.tokens:,} tokens of {difference.documents} held-out documents its"
        " perplexity (how surprised a model is by real text) is"
    )
    if math.isinf(ratio):
        return (
            f"{measured} beyond all bounds: it is {difference.mean:,.0f} nats a token worse than"
            f" {story.parent_label}."
        )
    return (
        f"{measured} {_change(ratio)} that of {story.parent_label}. With"
        f" {percent(difference.confidence)} confidence the true figure lies between {_percent(low)}"
        f" and {_percent(high)}; the margin is {_percent(_exp(story.verdict.margin))}."
    )


def _change(ratio: float) -> str:
    if abs(ratio - 1) < 5e-5:
        return "the same as"
    return (
        _times(ratio) if ratio > 3 else f"{abs(ratio - 1):.2%} {'above' if ratio > 1 else 'below'}"
    )


def _percent(ratio: float) -> str:
    return _times(ratio) if ratio > 3 else f"{ratio - 1:+.2%}".replace("-", "\u2212")


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if 100 <= ratio < 1e6 else f"{ratio:.3g} times"


def _plain(ratio: float) -> str:
    return "∞" if math.isinf(ratio) else f"{ratio:.4g}"


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def tiles(story: Story) -> Iterator[tuple[str, str, str]]:
    """The figures at the top: what, how much, on what."""
    evidence, parent, served = story.evidence, story.parent, story.served
    if story.itself:
        yield (
            "perplexity",
            f"{evidence.perplexity_parent:.4g}",
            f"of {served.label} (n = {evidence.tokens:,} tokens)",
        )
        yield "size", size(served.model_bytes), "weights and tokenizer on disk"
        return
    if story.verdict.difference:
        ratio, low, high = story.verdict.difference.ratio
        yield (
            "perplexity ratio",
            _plain(ratio),
            (
                f"{_plain(low)} to {_plain(high)}, margin {_exp(story.verdict.margin):g} "
                f"(n = {story.verdict.difference.documents} documents)"
            ),
        )
    yield (
        "same next token",
        f"{evidence.top1_agreement:.1%}",
        f"both rank the same token first (n = {evidence.tokens:,} tokens)",
    )
    if parent and parent.model_bytes and served.model_bytes:
        smaller = parent.model_bytes / served.model_bytes
        yield (
            "size",
            f"{max(smaller, 1 / smaller):.2f}× {'smaller' if smaller >= 1 else 'larger'}",
            f"{size(served.model_bytes)} instead of {size(parent.model_bytes)}",
        )
    faster = _speed_up(parent, served)
    if faster:
        yield faster
    if evidence.checks:
        judged = [check for check in evidence.checks if check.passed is not None]
        yield (
            "checks",
            f"{sum(bool(check.passed) for check in judged)} of {len(judged)}",
            (
                f"passed, of those that could be judged (n = {sum(check.n for check in judged)}"
                " probes)"
            ),
        )


def _speed_up(parent: Subject | None, served: Subject) -> tuple[str, str, str] | None:
    if not (parent and parent.measurement and served.measurement):
        return None
    before = {speed.batch_size: speed for speed in parent.measurement.speeds}
    both = [
        (before[speed.batch_size], speed)
        for speed in served.measurement.speeds
        if speed.batch_size in before
    ]
    if not both:
        return None
    (old, new), (first_old, first_new) = both[-1], both[0]
    also = (
        ""
        if len(both) == 1
        else f"; {first_new.decode_median / first_old.decode_median:.2f}× at {first_new.batch_size}"
    )
    return (
        "decode speed",
        f"{new.decode_median / old.decode_median:.2f}×",
        (
            f"{new.decode_median:,.0f} instead of {old.decode_median:,.0f} "
            f"tokens/s at batch size {new.batch_size}{also} (n = {len(new.decode)} rounds)"
        ),
    )


# -- the page


def render(story: Story) -> str:
    """The page as HTML: one file, no script, nothing fetched from anywhere."""
    from tasks.reporting import figures, plots
    from tasks.reporting.tables import checks, engine_table, load_notes, load_table, machines

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        # but no markup
        lstrip_blocks=True,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    environment.filters |= {
        "size": size,
        "short": lambda digest: digest[:12],
        "figure": lambda value: f"{value:,.0f}" if value >= 1000 else f"{value:.4g}",
        "wide": lambda cell: max(map(len, cell.split("\n"))) > WIDEST_CELL,
    }
    environment.tests["digest"] = lambda text: re.fullmatch("[0-9a-f]{40,128}", text) is not None

    variants = [
        {head: cell for head, cell in row.items() if head not in SPEEDS}
        for row in variant_rows(story)
    ]

    def figure(plot: Plot) -> Markup:
        return Markup(
            plots.embed(plot.svg, plot.key, str(escape(plot.title)), str(escape(plot.description)))
        )

    return environment.get_template("report.html.j2").render(
        story=story,
        name=story.run.name,
        verdict=story.verdict,
        evidence=story.evidence,
        sign=SIGNS[story.verdict.outcome],
        signs=SIGNS,
        headline=headline(story),
        explanation=explanation(story),
        tiles=list(tiles(story)),
        figure=figure,
        quality=[*figures.quality(story), *figures.trade_offs(story)],
        speed=list(figures.speed(story)),
        variants=variants,
        tasks=task_rows(story),
        checks=checks(story),
        loads=load_table(story),
        speeds=engine_table(story),
        notes=load_notes(story),
        machines=machines(story),
        steps=step_rows(story.run),
        run=story.run,
    )


def shown(text: str) -> str:
    """Text of a model as a person can see it: control characters and what turns the direction of
    writing as visible signs, and cut."""
    cut = len(text) - LONGEST_TEXT
    visible = "".join(_sign(character) for character in text[:LONGEST_TEXT].replace("\r\n", "\n"))
    return f"{visible} … ({cut:,} more characters)" if cut > 0 else visible


def _sign(character: str) -> str:
    if character in "\n\t":
        return character
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))
    kind = unicodedata.category(character)
    if kind == "Cs":
        return "\ufffd"
    if kind == "Cc" or unicodedata.bidirectional(character) in {
        "LRE",
        "RLE",
        "LRO",
        "RLO",
        "PDF",
        "LRI",
        "RLI",
        "FSI",
        "PDI",
    }:
        return f"⟨U+{ord(character):04X}⟩"
    return character


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """A recipe as lines of dotted keys, sorted; what is empty is left out."""
    for key, item in sorted(value.items()):
        if isinstance(item, Mapping):
            yield from _flat(item, f"{before}{key}.")
        elif item is not None and item != []:
            yield f"{before}{key}", "yes" if item is True else "no" if item is False else str(item)
