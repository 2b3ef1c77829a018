"""The report in short, as markdown for the terminal and the Prefect UI; and the tables that it
shares with the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from configs.units import size

if TYPE_CHECKING:
    from artifacts.records.measurement import Measurement, Speed
    from artifacts.records.outcomes import RunOutcome
    from tasks.reporting.page import Ancestor, Story, Subject

COLUMNS = (
    "variant",
    "verdict",
    "size",
    "perplexity",
    "ratio",
    "top-1",
    "mean KL",
    "load",
    "GPU memory",
    "prefill tokens/s",
    "decode tokens/s",
)
LONGEST_ANSWER = 600  # characters; the page has more


def markdown(story: Story, headline: str, explanation: str) -> str:
    """The whole story in short: the verdict first, then what it rests on. What there is nothing of
    has no heading."""
    return (
        "\n\n".join(
            part
            for part in [
                f"# {story.run.name}: {story.verdict.outcome}",
                headline,
                explanation,
                "\n".join(f"- {reason}" for reason in story.verdict.reasons),
                *_choices(story),
                table(variant_rows(story)),
                problems(story),
                *_measured(story),
                *_section("Tasks", table(task_rows(story))),
                *_section("Generation checks", _checks(story)),
                *_section("Answers", _answers(story)),
                *_section("Recipe", _recipe(story)),
                *_section("Steps", table(step_rows(story.run))),
                *_section("Lineage", "\n".join(_lineage(story.lineage))),
            ]
            if part
        )
        + "\n"
    )


def variant_rows(story: Story) -> list[dict[str, str]]:
    """The table of variants. Each is judged like the served one; tokens/s are medians over the
    rounds, by batch size."""
    return in_order(
        [_variant_row(story, one) | _performance(one.measurement) for one in story.subjects]
    )


def _variant_row(story: Story, one: Subject) -> dict[str, str]:
    row = {
        "variant": one.label,
        "verdict": "",
        "size": size(one.model_bytes),
        "perplexity": "",
        "ratio": "",
        "top-1": "",
        "mean KL": "",
    }
    if one.problem:
        return row | {"verdict": one_line(one.problem.split(";")[0])}
    if one.parent:
        healthy = one.verdict is None or one.verdict.outcome == "PASS"
        return row | {
            "verdict": "baseline" if healthy or one.verdict is None else one.verdict.outcome,
            "perplexity": f"{story.evidence.perplexity_parent:.3f}",
            "ratio": "1",
        }
    if one.evidence is None or one.verdict is None:
        return row
    difference = one.verdict.difference
    interval = f" [{difference.ratio[1]:.4f}, {difference.ratio[2]:.4f}]" if difference else ""
    return row | {
        "verdict": one.verdict.outcome,
        "perplexity": f"{one.evidence.perplexity_candidate:.3f}",
        "ratio": f"{one.evidence.perplexity_ratio:.4f}{interval}",
        "top-1": f"{one.evidence.top1_agreement:.1%}",
        "mean KL": f"{one.evidence.kl.mean:.4f}",
    }


def in_order(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Every row with the same columns, in the order of COLUMNS; one that no row has is left out."""
    there = {column for row in rows for column in row}
    return [{column: row.get(column, "") for column in COLUMNS if column in there} for row in rows]


def _performance(measured: Measurement | None) -> dict[str, str]:
    if measured is None:
        return {}
    row = {"load": f"{measured.load_seconds:.1f} s"}
    if measured.gpu_bytes is not None:
        row["GPU memory"] = size(measured.gpu_bytes)
    if measured.speeds:
        row["prefill tokens/s"] = _by_batch(measured.speeds, "prefill_median")
        row["decode tokens/s"] = _by_batch(measured.speeds, "decode_median")
    return row


def _by_batch(speeds: tuple[Speed, ...], figure: str) -> str:
    return ", ".join(f"{getattr(speed, figure):.0f} (batch {speed.batch_size})" for speed in speeds)


def task_rows(story: Story) -> list[dict[str, str]]:
    """Accuracy of both models on the tasks, with the items that changed sides."""
    rows = []
    for one in story.evidence.tasks:
        broken = f", {one.broken_candidate} broken" if one.broken_candidate else ""
        rows.append(
            {
                "task": one.task,
                "n": str(one.n),
                story.parent_label: f"{one.parent_accuracy:.1%}",
                story.served.label: f"{one.candidate_accuracy:.1%}",
                "lost": f"{one.lost}{broken}",
                "gained": str(one.gained),
                "flips": f"{one.flip_rate:.1%}",
                "p (worse)": f"{one.p_worse:.3g}",
                "p, all tasks": f"{one.p_worse_holm:.3g}",
                "p (two-sided)": f"{one.p_two_sided:.3g}",
                "smallest drop it could see": (
                    "none" if one.detectable_drop is None else f"{one.detectable_drop:.1%}"
                ),
            }
        )
    return rows


def step_rows(run: RunOutcome) -> list[dict[str, str]]:
    """The table of steps; without a GPU it has no column for one."""
    gpu = any(item.peak_gpu_bytes is not None for item in run.steps)
    return [
        {
            "step": item.name,
            "seconds": f"{item.seconds:.1f}",
            "peak memory": size(item.peak_rss_bytes) if item.peak_rss_bytes else "",
            **(
                {
                    "peak GPU memory": (
                        size(item.peak_gpu_bytes) if item.peak_gpu_bytes is not None else ""
                    )
                }
                if gpu
                else {}
            ),
        }
        for item in run.steps
    ]


def problems(story: Story) -> str:
    """Why a variant has no figures, in full; empty if all have some."""
    return "\n\n".join(f"**{one.label}**: {one.problem}" for one in story.subjects if one.problem)


def _choices(story: Story) -> Iterator[str]:
    if len(story.rungs) > 1:
        yield "## Attempts"
        yield table(
            [
                {
                    "attempt": str(number),
                    "change": rung.change or "the recipe as it was asked for",
                    "verdict": rung.verdict.outcome,
                    "ratio": f"{rung.evidence.perplexity_ratio:.4f}",
                    "size": size(rung.model_bytes),
                    "kept": "yes" if rung.kept else "",
                }
                for number, rung in enumerate(story.rungs, 1)
            ]
        )
    if choice := story.run.choice:
        yield (
            f"**Chosen for {choice.objective}**: {choice.why} ("
            + ", ".join(f"{variant} {figure:g} {choice.unit}" for variant, figure in choice.figures)
            + ")"
        )


def _measured(story: Story) -> Iterator[str]:
    evidence, measurement = story.evidence, story.served.measurement
    engine = ", ".join(f"{name} {version}" for name, version in evidence.versions.items())
    hardware = (
        f"Hardware: {', '.join(f'{key} {value}' for key, value in measurement.hardware.items())}."
        if measurement
        else ""
    )
    apart = (
        "that share no passage with the calibration text"
        if not evidence.overlap
        else f"of which {evidence.overlap} share a passage with the calibration text"
    )
    yield (
        f"Measured through {evidence.engine} (runtime {evidence.runtime}; {engine})\non"
        f" {evidence.tokens} tokens of {len(evidence.documents)} held-out documents {apart}. KL"
        f" divergence: mean {evidence.kl.mean:.4f}, median {evidence.kl.median:.4f}, 99.9%"
        f" {evidence.kl.p999:.4f}, largest {evidence.kl.largest:.4f} nats. {hardware}".rstrip()
    )


def _checks(story: Story) -> str:
    words = {True: "passed", False: "failed", None: "not applicable"}
    return table(
        [
            {
                "check": one.name,
                "result": words[one.passed],
                "n": str(one.n),
                "new failures": str(one.new_failures),
                "why": one_line(one.why),
            }
            for one in story.evidence.checks
        ]
    )


def _answers(story: Story) -> str:
    return "\n\n".join(
        f"**{one_line(sample.prompt)}**\n\n- {story.parent_label}: {quoted(sample.parent)}\n"
        f"- {story.served.label}: {quoted(sample.candidate)}"
        for sample in story.evidence.samples
    )


def _recipe(story: Story) -> str:
    settings = ", ".join(
        f"{key} {value}" for key, value in story.recipe.items() if not key.startswith("versions.")
    )
    versions = ", ".join(
        f"{key.removeprefix('versions.')} {value}"
        for key, value in story.recipe.items()
        if key.startswith("versions.")
    )
    model, smoke_test = story.run.model, story.run.smoke_test
    parts = [
        f"{model.architecture}, {model.parameters / 1e6:.0f} million parameters." if model else "",
        f"{settings}." if settings else "",
        f"Versions: {versions}." if versions else "",
    ]
    spoke = (
        f"\n\nThe fp16 smoke test took {smoke_test.load_seconds:.1f} s to load, generated"
        f" {smoke_test.tokens_per_second:.1f} tokens/s and\ntook {size(smoke_test.peak_rss_bytes)}"
        " of memory at most."
        if smoke_test
        else ""
    )
    return (" ".join(part for part in parts if part) + spoke).strip()


def _lineage(one: Ancestor, depth: int = 0) -> Iterator[str]:
    yield f"{'  ' * depth}- {one.role} `{one.digest}`{' (see above)' if one.again else ''}"
    for parent in one.parents:
        yield from _lineage(parent, depth + 1)


def _section(title: str, body: str) -> Iterator[str]:
    if body:
        yield f"## {title}"
        yield body


def table(rows: list[dict[str, str]]) -> str:
    """A markdown table; empty without rows."""
    if not rows:
        return ""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(
        [
            *lines,
            *(
                "| " + " | ".join(row[head].replace("|", "\\|") for head in heads) + " |"
                for row in rows
            ),
        ]
    )


def quoted(text: str) -> str:
    """An answer as code in one line, so that nothing in it is taken for markdown or HTML."""
    line = one_line(re.sub(r"[^\S \n]|[\x00-\x1f\x7f]", " ", text))
    line = line if len(line) <= LONGEST_ANSWER else line[:LONGEST_ANSWER] + " …"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}"


def one_line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"


def percent(share: float) -> str:
    """A confidence: 0.95 is 95%, and 0.9875 is not 99%."""
    return f"{share * 100:.4g}%"
