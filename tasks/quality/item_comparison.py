"""Two models' answers to the same task items, compared in pairs: what was lost, what was
gained, and whether that could be chance.

Knows nothing of margins and verdicts: `tasks.quality.verdict` judges.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from artifacts.records.items import ItemOutcome, TaskComparison
from tasks.quality.mcnemar import detectable_drop, holm, mcnemar

ALPHA = 0.05


def compare_items(
    parent: Sequence[ItemOutcome], candidate: Sequence[ItemOutcome], *, alpha: float = ALPHA
) -> tuple[TaskComparison, ...]:
    """Compare two models task by task on the items that both were asked; tasks in their order of
    appearance.

    Args:
        alpha: level of the one-sided test over all tasks. The smallest detectable drops are those
            at alpha over the number of tasks, which is what Holm's method asks of the first of
            them.

    Raises:
        ValueError: an item appears twice under one model.
    """
    of_parent = _by_task(parent)
    of_candidate = _by_task(candidate)
    tasks = list(dict.fromkeys([*of_parent, *of_candidate]))
    tested = sum(bool(of_parent[task].keys() & of_candidate[task].keys()) for task in tasks)
    alpha_each = alpha / max(1, tested)
    alone = [_compare(task, of_parent[task], of_candidate[task], alpha_each) for task in tasks]
    adjusted = iter(holm([comparison.p_worse for comparison in alone if comparison.n]))
    return tuple(
        comparison.model_copy(update={"p_worse_holm": next(adjusted)})
        if comparison.n
        else comparison
        for comparison in alone
    )


def _compare(
    task: str,
    parent: Mapping[str, ItemOutcome],
    candidate: Mapping[str, ItemOutcome],
    alpha: float,
) -> TaskComparison:
    """One task by itself, its p value not yet adjusted for the others."""
    pairs = [(outcome, candidate[item]) for item, outcome in parent.items() if item in candidate]
    lost = sum(before.correct and not after.correct for before, after in pairs)
    gained = sum(after.correct and not before.correct for before, after in pairs)
    two_sided, worse = mcnemar(lost, gained)
    return TaskComparison(
        task=task,
        n=len(pairs),
        parent_correct=sum(before.correct for before, _ in pairs),
        candidate_correct=sum(after.correct for _, after in pairs),
        lost=lost,
        gained=gained,
        broken_parent=sum(before.broken for before, _ in pairs),
        broken_candidate=sum(after.broken for _, after in pairs),
        p_two_sided=two_sided,
        p_worse=worse,
        p_worse_holm=worse,
        detectable_drop=detectable_drop(len(pairs), lost + gained, alpha=alpha),
        only_parent=len(parent.keys() - candidate.keys()),
        only_candidate=len(candidate.keys() - parent.keys()),
    )


def _by_task(outcomes: Sequence[ItemOutcome]) -> Mapping[str, dict[str, ItemOutcome]]:
    found: defaultdict[str, dict[str, ItemOutcome]] = defaultdict(dict)
    for outcome in outcomes:
        if outcome.item in found[outcome.task]:
            raise ValueError(f"item {outcome.item!r} of task {outcome.task!r} appears twice")
        found[outcome.task][outcome.item] = outcome
    return found
