"""A `report` artifact: the verdict about a candidate, and the report that people read.

Data only, as it is stored; `tasks.quality.verdict` judges and `tasks.reporting` writes. All NLL
figures are in nats.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from artifacts.manifest import Digest
from artifacts.records.evidence import perplexity
from artifacts.records.record import Record

VERDICT = "verdict.json"
VARIANTS = "variants.json"  # the table of variants: a list of rows, each cell as text
MARKDOWN = "report.md"
PAGE = "report.html"


class Difference(Record):
    """The paired difference in NLL, candidate minus parent, in nats a token: what the verdict rests
    on.

    Attributes:
        low, high: the interval's limits; `confidence` holds over all looks that were planned.
        smallest_detectable: the smallest true loss that this sample would have shown (interval
            above 0) four times in five.
    """

    mean: float
    low: float
    high: float
    confidence: float
    documents: int
    tokens: int
    smallest_detectable: float

    @property
    def ratio(self) -> tuple[float, float, float]:
        """The same as a ratio of perplexities, candidate over parent, with its limits."""
        return perplexity(self.mean), perplexity(self.low), perplexity(self.high)


Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE", "ANOMALOUS"]


class Verdict(Record):
    """The decision about a candidate, with its reasons in plain words.

    PASS: not worse than the margin allows. FAIL: worse, or broken. INCONCLUSIVE: too little was
    measured to say. ANOMALOUS: the measurement itself cannot be right.

    Attributes:
        margin: the largest loss that is accepted, in nats a token.
        difference: None if too few documents were scored for an interval.
    """

    outcome: Outcome
    reasons: tuple[str, ...] = Field(min_length=1)
    variant: str
    candidate: Digest
    evidence: Digest
    margin: float
    difference: Difference | None
