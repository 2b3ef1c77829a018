"""Task items: what a model answered to each, and how two models compare on those that both were
asked.

Data only; `tasks.quality.item_answers` asks, `item_comparison` compares.
"""

from __future__ import annotations

from pydantic import Field

from artifacts.records.record import Record


class ItemOutcome(Record):
    """One item under one model.

    Attributes:
        answer: the choice that was found likeliest, or the answer as it was compared.
        broken: a score was NaN or a probability 0. Such an item counts as wrong.
    """

    task: str
    item: str
    correct: bool
    answer: str
    broken: bool = False


class TaskComparison(Record):
    """One task under parent and candidate, paired item by item.

    Attributes:
        n: items that both were asked; all further figures but the last two are about these.
        lost: items that the parent has right and the candidate wrong.
        gained: the other way round.
        broken_parent, broken_candidate: items whose scores were NaN or of probability 0.
        p_two_sided: exact McNemar test: the chance of flips at least as one-sided as these if both
            directions are equally likely.
        p_worse: the same against one alternative, that the candidate is worse.
        p_worse_holm: `p_worse`, adjusted over the tasks of the comparison (Holm).
        detectable_drop: the smallest drop in accuracy, 0 to 1, that a test of this many items at
            this rate of flips finds with a probability of 80 %; None: not even the loss of every
            item would be.
        only_parent, only_candidate: items that only one of the two was asked.
    """

    task: str
    n: int = Field(ge=0)
    parent_correct: int = Field(ge=0)
    candidate_correct: int = Field(ge=0)
    lost: int = Field(ge=0)
    gained: int = Field(ge=0)
    broken_parent: int = Field(default=0, ge=0)
    broken_candidate: int = Field(default=0, ge=0)
    p_two_sided: float = Field(ge=0, le=1)
    p_worse: float = Field(ge=0, le=1)
    p_worse_holm: float = Field(ge=0, le=1)
    detectable_drop: float | None
    only_parent: int = Field(default=0, ge=0)
    only_candidate: int = Field(default=0, ge=0)

    @property
    def parent_accuracy(self) -> float:
        """Share of right answers, 0 to 1; 0 without items."""
        return self.parent_correct / max(1, self.n)

    @property
    def candidate_accuracy(self) -> float:
        return self.candidate_correct / max(1, self.n)

    @property
    def flip_rate(self) -> float:
        """Share of the items whose answers went from right to wrong or back."""
        return (self.lost + self.gained) / max(1, self.n)


class HarnessMetric(Record):
    """A figure of lm-evaluation-harness: its mean over a task, and that one's standard error if the
    library gives one."""

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None


class HarnessResult(Record):
    """What lm-evaluation-harness found at one endpoint.

    Attributes:
        version: of the library.
        metrics: its own figures.
        outcomes: each question that is right or wrong by the task's first such metric; tasks
            without one have none.
    """

    url: str
    model: str
    version: str
    metrics: tuple[HarnessMetric, ...]
    outcomes: tuple[ItemOutcome, ...]
