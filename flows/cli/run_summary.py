"""The end of a run on the terminal: verdict, both models side by side, digests, the endpoint, and
what to type next."""

from __future__ import annotations

import shlex

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from artifacts.registry.refs import STAGES
from configs.units import gb, mb
from flows.cli.terminal import show_table
from flows.run.summary import Summary
from tasks.reporting.text import one_line

COLOURS = {"PASS": "green", "FAIL": "red"}


def print_summary(
    console: Console, summary: Summary, *, seconds: float, peak_bytes: int, program: str
) -> None:
    """Print what a run has led to.

    Args:
        seconds: how long it took.
        peak_bytes: the most memory over all its processes.
        program: what the reader types to call this program.
    """
    verdict = summary.verdict
    colour = COLOURS.get(verdict.outcome, "yellow")
    reasons = escape("; ".join(verdict.reasons))
    console.print()
    console.print(f"[bold {colour}]{verdict.outcome}[/] {reasons}", highlight=False)
    console.print(side_by_side(summary), highlight=False)
    console.print()
    if len(summary.judged.variants) > 2 or "decode tokens/s" in summary.judged.variants[0]:
        show_table(list(summary.judged.variants), console)
        console.print()
    attempts = len(summary.asked.attempts)
    if attempts > 1:
        console.print(f"taken from {attempts} attempts at a candidate\n", highlight=False)
    choice = summary.asked.choice
    if choice:
        reason = f"{escape(choice.objective)}: {escape(choice.why)}"
        console.print(f"served for {reason}\n", highlight=False, soft_wrap=True)
    took = f"{seconds:.0f} s, at most {gb(peak_bytes)} of memory over all processes"
    for name, value in [*facts(summary), ("this run", took)]:
        console.print(f"{name:<10}{escape(value)}", highlight=False, soft_wrap=True)
    console.print()
    steps = next_steps(summary, program)
    width = max(len(command) for command, _ in steps) + 3
    for command, what in steps:
        console.print(f"  {command:<{width}}[dim]{what}[/]", highlight=False, soft_wrap=True)


def side_by_side(summary: Summary) -> Table:
    """Size, scores and sample answers of the parent and the candidate."""
    evidence = summary.evidence()
    difference = summary.verdict.difference
    parent_bytes = summary.parent.model_bytes
    candidate_bytes = summary.served.model_bytes
    smaller = parent_bytes / candidate_bytes
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "fp16", summary.served.variant):
        rows.add_column(column, overflow="fold")
    rows.add_row(
        "size",
        mb(parent_bytes),
        f"{mb(candidate_bytes)} ({smaller:.2f} times smaller)",
    )
    rows.add_row(
        "perplexity",
        f"{evidence.perplexity_parent:.3f}",
        f"{evidence.perplexity_candidate:.3f} (ratio {evidence.perplexity_ratio:.4f})",
    )
    rows.add_row(
        "agreement", "", f"top-1 {evidence.top1_agreement:.1%}, mean KL {evidence.kl.mean:.4f} nats"
    )
    if difference:
        rows.add_row(
            "could have seen", "", f"a loss of {difference.smallest_detectable:.4f} nats a token"
        )
    for sample in evidence.samples:
        rows.add_row(
            escape(f"> {sample.prompt}"),
            escape(one_line(sample.parent)),
            escape(one_line(sample.candidate)),
        )
    return rows


def facts(summary: Summary) -> list[tuple[str, str]]:
    """What the run has made, and where it stands: names and values."""
    found = [("artifact", summary.served.model.digest), ("report", summary.report.digest)]
    promoted = summary.promoted
    deployed = summary.deployed
    if promoted:
        moved = "" if promoted.moved else " (pointed there already)"
        found.append(("stage", f"{summary.name}/{promoted.stage}{moved}"))
    if deployed:
        running = " (was running)" if deployed.reused else ""
        difference = f"{deployed.score_difference:.4f} nats a token"
        found += [
            ("endpoint", f"{deployed.url}/v1  model {deployed.model_name}{running}"),
            ("", f"scores held-out text within {difference} of the evidence"),
        ]
    if summary.reused:
        found.append(("reused", ", ".join(name.replace("_", " ") for name in summary.reused)))
    return found


def next_steps(summary: Summary, program: str) -> list[tuple[str, str]]:
    """What to type next, and what it does."""
    steps = []
    if summary.deployed:
        steps += [
            (f"{program} chat {summary.name}", "talk to it"),
            (f"{program} stop {summary.name}", "take it down"),
        ]
    steps += [
        (f"{program} report {summary.report.short}", "the whole report"),
        (f"{program} ui", "runs, logs and reports in the Prefect UI"),
    ]
    if summary.promoted and summary.promoted.stage != STAGES[-1]:
        stage = summary.promoted.stage
        following = STAGES[STAGES.index(stage) + 1]
        store = f" --store {shlex.quote(summary.store)}" if summary.store else ""
        steps.append(
            (
                f"{program} registry promote {summary.name} {stage} {following}{store}",
                "when it has proved itself",
            )
        )
    return steps
