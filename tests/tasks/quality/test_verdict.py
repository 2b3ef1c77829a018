"""The verdict: what passes, what fails, what is too little to say, and what cannot be right as a
measurement."""

from __future__ import annotations

import math

import numpy as np
import pytest

from artifacts.records.evidence import DocumentScore, Evidence, KlDivergence, SampleAnswer
from configs.evaluation import Evaluate
from tasks.quality.verdict import judge, wants_more

PARENT, CANDIDATE, DIGEST = "a" * 64, "b" * 64, "c" * 64
CONFIG = Evaluate(max_perplexity_ratio=1.1, documents=24, max_documents=48)
MARGIN = math.log(1.1)


def evidence(
    loss: float = 0.05,
    *,
    spread: float = 0.02,
    documents: int = 24,
    nll: float = 2.0,
    **more: object,
) -> Evidence:
    """Documents of 100 tokens whose mean loss is exactly `loss` nats a token, and varies by
    `spread` between them."""
    effects = np.random.default_rng(0).normal(0, 1, documents)
    effects = loss + spread * (effects - effects.mean())
    scores = tuple(
        DocumentScore(
            tokens=100,
            nll_parent=100 * nll,
            nll_candidate=100 * (nll + effect),
            kl=1.0,
            same_top=90,
        )
        for effect in effects
    )
    values = {
        "variant": "w4a16",
        "engine": "transformers",
        "runtime": "default",
        "parent": PARENT,
        "candidate": CANDIDATE,
        "texts": DIGEST,
        "documents": scores,
        "kl": KlDivergence(mean=0.01, median=0.0, p999=0.1, largest=0.2),
        "same_prompts": True,
        "versions": {},
        "samples": (SampleAnswer(prompt="p", parent="a", candidate="b"),),
    }
    return Evidence.model_validate(values | more)


BROKEN = evidence().model_copy(
    update={
        "documents": (
            *evidence().documents,
            DocumentScore(tokens=5, broken=3, nll_parent=10, nll_candidate=10, kl=0, same_top=5),
        )
    }
)


@pytest.mark.parametrize(
    ("found", "outcome", "reason"),
    [
        (evidence(0.05), "PASS", "within the margin: perplexity ratio 1.0513 ["),
        (evidence(0.0), "PASS", "perplexity ratio 1.0000"),
        (evidence(0.3), "FAIL", "worse than the margin: perplexity ratio 1.3499 ["),
        (evidence(9.0), "FAIL", "worse than the margin"),
        (evidence(MARGIN), "INCONCLUSIVE", "the interval reaches across the margin"),
        (evidence(MARGIN - 0.001), "INCONCLUSIVE", "the interval reaches across the margin"),
        (
            evidence(0.05, documents=23),
            "INCONCLUSIVE",
            "23 documents are too few to judge by, 24 are needed",
        ),
        (evidence(0.05, documents=1), "INCONCLUSIVE", "1 documents are too few"),
        (evidence(0.05, same_prompts=False), "FAIL", "chat template renders other prompts"),
        (BROKEN, "FAIL", "3 positions have NaN"),
        (evidence(0.3, documents=12), "FAIL", "worse than the margin"),
    ],
)
def test_the_verdict_and_its_reasons(found: Evidence, outcome: str, reason: str) -> None:
    verdict = judge(found, DIGEST, CONFIG)
    assert verdict.outcome == outcome and reason in "; ".join(verdict.reasons)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (evidence(0.05, nll=8.0), "the parent's own perplexity is 2981"),
        (evidence(0.05, nll=0.001), "the parent's own perplexity is 1.001"),
        (evidence(-0.05), "significantly better than its parent"),
        (
            evidence(0.05, unpaired=(2, 0)),
            "2 documents were scored by the parent alone and 0 by the candidate alone",
        ),
        (
            evidence(0.05, unpaired=(0, 1)),
            "0 documents were scored by the parent alone and 1 by the candidate alone",
        ),
        (
            evidence(0.05, overlap=1),
            "1 held-out documents share a passage with the calibration text",
        ),
    ],
)
def test_what_cannot_be_right_is_anomalous_and_never_passes(found: Evidence, reason: str) -> None:
    verdict = judge(found, DIGEST, CONFIG)
    assert verdict.outcome == "ANOMALOUS" and reason in "; ".join(verdict.reasons)


def test_an_anomaly_does_not_hide_that_the_candidate_is_worse() -> None:
    reasons = judge(evidence(0.3, overlap=1), DIGEST, CONFIG).reasons
    assert len(reasons) == 2 and "worse than the margin" in reasons[1]


def test_rounding_is_not_better_than_the_parent() -> None:
    """Every document is better by 0.0005 nats a token: significant, and no more than other kernels
    do."""
    assert judge(evidence(-0.0005, spread=0.0001), DIGEST, CONFIG).outcome == "PASS"


def test_the_baseline_passes_by_itself() -> None:
    few = evidence(0.0, spread=0.0, documents=8)
    assert judge(few.model_copy(update={"itself": True}), DIGEST, CONFIG).reasons == (
        "it is the baseline itself",
    )
    assert judge(few, DIGEST, CONFIG).outcome == "INCONCLUSIVE"


def test_more_documents_are_wanted_while_it_is_open_and_the_budget_lasts() -> None:
    def wants(found: Evidence) -> bool:
        return wants_more(found, judge(found, DIGEST, CONFIG), CONFIG)

    assert wants(evidence(MARGIN)) and wants(evidence(0.05, documents=12))
    assert (
        not wants(evidence(0.05))
        and not wants(evidence(0.3))
        and not wants(evidence(MARGIN, overlap=1))
    )
    assert not wants(evidence(MARGIN, documents=48, looks=2))


def test_the_first_look_is_stricter_than_the_last_and_an_only_one_is_plain() -> None:
    def width(config: Evaluate, looks: int) -> float:
        difference = judge(evidence(0.05, looks=looks), DIGEST, config).difference
        assert difference is not None
        return difference.high - difference.low

    only = CONFIG.model_copy(update={"max_documents": 24})
    assert width(CONFIG, 1) > 1.2 * width(only, 1) and width(CONFIG, 2) == pytest.approx(
        width(only, 1), rel=0.03
    )


def test_figures_are_those_of_the_documents() -> None:
    difference = judge(evidence(0.05), DIGEST, CONFIG).difference
    assert difference is not None
    assert difference.mean == pytest.approx(0.05) and (
        difference.documents,
        difference.tokens,
        difference.confidence,
    ) == (24, 2400, 0.95)
    assert (
        difference.low < 0.05 < difference.high < MARGIN
        and 0 < difference.smallest_detectable < 0.05
    )
    assert difference.ratio == pytest.approx(
        (math.exp(difference.mean), math.exp(difference.low), math.exp(difference.high))
    )
