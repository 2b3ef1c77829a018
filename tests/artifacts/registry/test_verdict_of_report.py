"""A report counts only if it, its evidence and their manifests agree."""

from __future__ import annotations

from typing import Any

import pytest

from configs.errors import PromotionRefused
from tests.support import places
from tests.support.places import Place, promote
from tests.support.promotions import refused, up


@pytest.mark.parametrize("outcome", ["FAIL", "ANOMALOUS"])
def test_a_report_that_speaks_against_it_makes_somebody_choose(place: Place, outcome: str) -> None:
    good, bad = place.judged(), place.judged(outcome=outcome)
    assert good.candidate == bad.candidate
    with pytest.raises(
        PromotionRefused, match=r"has passed by report .* and failed by report .*--report"
    ):
        promote(place.store, "m", good.candidate, "dev")
    assert promote(place.store, "m", good.candidate, "dev", report=good.report).moved
    assert promote(place.store, "m", "dev", "staging").now.report == good.report


def test_without_a_report_there_is_no_pass(place: Place) -> None:
    candidate, *_ = places.model(place.workshop, "new")
    place.bring(candidate)
    refused(place, f"no PASS for {candidate[:12]}", candidate)
    refused(place, "of kind w4a16 and has no verdict", candidate, report=candidate)
    refused(place, "no artifact starts with", "0123456789")
    refused(place, "too short", "12")


@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        ({"verdict": {"candidate": "a" * 64}}, "something else than its manifest says"),
        ({"verdict": {"evidence": "OTHER"}}, "something else"),
        ({"evidence": {"candidate": "a" * 64}}, "its evidence .* is about aaaaaaaaaaaa"),
        (
            {"evidence": {"variant": "fp16"}},
            "its verdict is about w4a16, and its evidence about fp16",
        ),
    ],
)
def test_a_report_that_contradicts_itself_is_refused(
    place: Place, forged: dict[str, Any], reason: str
) -> None:
    other = place.judged("other")
    if forged.get("verdict", {}).get("evidence"):
        forged = {"verdict": {"evidence": other.evidence}}
    one = place.judged(**forged)
    refused(place, reason, one.candidate, report=one.report)
    refused(place, "no PASS", one.candidate)


def test_a_report_that_names_a_candidate_that_was_not_judged_is_refused(place: Place) -> None:
    bad = place.judged("bad", outcome="FAIL")
    good = place.judged("good", named=bad.candidate)
    refused(place, "something else than its manifest says", bad.candidate, report=good.report)
    refused(place, "something else than its manifest says", bad.candidate)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"outcome": "PASS"}'])
def test_a_report_without_a_real_verdict_is_refused(place: Place, content: bytes) -> None:
    one = place.judged()
    fake = places.commit(
        place.workshop,
        "report",
        {"verdict.json": content},
        [("candidate", one.candidate), ("evidence", one.evidence)],
    )
    refused(place, "not what one looks like", one.candidate, report=place.bring(fake))


def test_of_several_ways_to_serve_it_one_must_be_named(place: Place) -> None:
    plain, small = place.judged(), place.judged(variant="w4a16-kv8")
    assert plain.candidate == small.candidate
    refused(
        place, "has passed as w4a16 on transformers, as w4a16-kv8 on transformers", plain.candidate
    )
    assert up(place, plain.candidate, variant="w4a16-kv8").now.report == small.report
    refused(
        place,
        f"dev has it as w4a16-kv8 on transformers by report {small.report[:12]}, not",
        plain.candidate,
        "staging",
        report=plain.report,
    )
    assert up(place, plain.candidate, "staging").now.variant == "w4a16-kv8"
