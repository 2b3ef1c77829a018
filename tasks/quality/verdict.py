"""The verdict: is the candidate as good as its parent? The one place that decides, from evidence
and the config's margin.

The question is non-inferiority: not whether a loss can be shown, but whether one beyond the margin
can be ruled out. PASS needs the upper limit of the paired difference's interval under the margin,
FAIL the lower limit above it. What cannot be right as a measurement is ANOMALOUS whatever the
interval says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from artifacts.records.evidence import Evidence
from artifacts.records.report import Difference, Outcome, Verdict
from configs.evaluation import Evaluate
from tasks.quality.non_inferiority import looks_levels, paired_difference, smallest_detectable

# with fewer, the interval of skewed differences misses too often (docs/verdict.md)
FEWEST_DOCUMENTS = 24
# a parent that knows every next token was trained on this text, or it is one line over and over
LOWEST_PERPLEXITY = 1.05
TASK_ERROR = 0.05  # chance that any task of a candidate as good as its parent fails it
# nats a token; two starts of one TurboMind model differ by 0.0003, float16 and float32 by less
NOISE = 0.002


def judge(evidence: Evidence, evidence_digest: str, config: Evaluate) -> Verdict:
    """Decide. `config` has the margin, the looks that were planned, and the confidence of all of
    them together."""
    difference = find_difference(evidence, config)
    outcome, reasons = _outcome(evidence, difference, config)
    return Verdict(
        outcome=outcome,
        reasons=tuple(reasons),
        variant=evidence.variant,
        candidate=evidence.candidate,
        evidence=evidence_digest,
        margin=math.log(config.max_perplexity_ratio),
        difference=difference,
    )


def _outcome(
    evidence: Evidence, difference: Difference | None, config: Evaluate
) -> tuple[Outcome, list[str]]:
    margin = math.log(config.max_perplexity_ratio)
    anomalies = [*anomalies_of(evidence, difference, config)]
    broken = [*defects_of(evidence)]
    if difference and difference.low > margin:
        broken.append(f"worse than the margin: {_figures(difference, config)}")
    if anomalies:
        return "ANOMALOUS", anomalies + broken
    if broken:
        return "FAIL", broken
    if evidence.itself:
        return "PASS", ["it is the baseline itself"]
    if difference is None or difference.documents < FEWEST_DOCUMENTS:
        too_few = (
            f"{len(evidence.documents)} documents are too few to judge by, {FEWEST_DOCUMENTS} are"
            " needed (evaluate.documents)"
        )
        return "INCONCLUSIVE", [too_few]
    if difference.high < margin:
        return "PASS", [f"within the margin: {_figures(difference, config)}"]
    across = (
        f"the interval reaches across the margin: {_figures(difference, config)}; a loss of"
        f" {difference.smallest_detectable:.4f} nats a token could have been seen"
    )
    return "INCONCLUSIVE", [across]


def wants_more(evidence: Evidence, verdict: Verdict, config: Evaluate) -> bool:
    """Whether more documents could settle it, and the budget has some."""
    return verdict.outcome == "INCONCLUSIVE" and evidence.looks < len(config.looks)


def find_difference(evidence: Evidence, config: Evaluate) -> Difference | None:
    """The paired difference with the interval of this look; None with fewer than two documents that
    have a score."""
    scored = [document for document in evidence.documents if document.tokens]
    if len(scored) < 2:
        return None
    look = min(evidence.looks, len(config.looks))
    level = looks_levels(config.looks, config.confidence)[look - 1]
    estimate = paired_difference(
        [document.nll_candidate - document.nll_parent for document in scored],
        [document.tokens for document in scored],
        level=level,
    )
    return Difference(
        mean=estimate.mean,
        low=estimate.low,
        high=estimate.high,
        confidence=config.confidence,
        documents=len(scored),
        tokens=evidence.tokens,
        smallest_detectable=smallest_detectable(estimate),
    )


def anomalies_of(
    evidence: Evidence, difference: Difference | None, config: Evaluate
) -> Iterator[str]:
    """What says that the measurement itself is wrong."""
    perplexity = evidence.perplexity_parent
    if evidence.tokens and not LOWEST_PERPLEXITY <= perplexity <= config.max_parent_perplexity:
        yield (
            f"the parent's own perplexity is {perplexity:.4g} (expected"
            f" {LOWEST_PERPLEXITY} to {config.max_parent_perplexity:g}): its weights, tokenizer or"
            " text are not what they should be"
        )
    if difference and difference.high < -NOISE:
        yield (
            f"significantly better than its parent: NLL difference {difference.mean:.4f}"
            f" [{difference.low:.4f}, {difference.high:.4f}] nats a token; quantization does not do"
            " that, so one of both was measured wrongly"
        )
    if any(evidence.unpaired):
        yield (
            f"{evidence.unpaired[0]} documents were scored by the parent alone and"
            f" {evidence.unpaired[1]} by the candidate alone: they are not the same test"
        )
    for task in evidence.tasks:
        if task.only_parent or task.only_candidate:
            yield (
                f"task {task.task}: {task.only_parent} items were asked of the parent alone and"
                f" {task.only_candidate} of the candidate alone: they are not the same test"
            )
    if evidence.overlap:
        yield (
            f"{evidence.overlap} held-out documents share a passage with the calibration text: they"
            " were seen in quantization"
        )


def defects_of(evidence: Evidence) -> Iterator[str]:
    """What is broken whatever the perplexity says."""
    if evidence.broken:
        yield f"{evidence.broken} positions have NaN or zero-probability scores"
    if not evidence.same_prompts:
        yield "the chat template renders other prompts for the candidate than for its parent"
    for check in evidence.checks:
        if check.passed is False:
            yield f"{check.name}: {check.why}"
    for task in evidence.tasks:
        if task.p_worse_holm <= TASK_ERROR:
            yield (
                f"task {task.task}: {task.candidate_accuracy:.1%} right against the parent's"
                f" {task.parent_accuracy:.1%} of {task.n} items; {task.lost} lost and {task.gained}"
                " gained (exact McNemar test against worse, over all tasks: p ="
                f" {task.p_worse_holm:.2g})"
            )


def _figures(difference: Difference, config: Evaluate) -> str:
    ratio, low, high = difference.ratio
    return (
        f"perplexity ratio {ratio:.4f} [{low:.4f}, {high:.4f}] on {difference.tokens} tokens of"
        f" {difference.documents} held-out documents, margin {config.max_perplexity_ratio:g}"
    )
