"""The summary of a report: the verdict in plain words, whatever it is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.store.local import LocalStore
from tasks.report import ReportRequest
from tasks.reporting.data import collect
from tasks.reporting.page import render
from tests.support import planted_reports
from tests.support.html_tree import Element, Tree
from tests.support.planted_reports import Site

HEADLINES = {
    "PASS": "w4a16 may stand in for fp16",
    "FAIL": "w4a16 may not stand in for fp16",
    "INCONCLUSIVE": "It is open whether w4a16",
    "ANOMALOUS": "Nothing can be said of w4a16 yet",
}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(LocalStore(tmp_path))


def tree(site: Site, request: ReportRequest) -> Element:
    return Tree(render(collect(request, site.store))).root


@pytest.mark.parametrize("outcome", sorted(planted_reports.OUTCOMES))
def test_the_verdict_comes_first_in_plain_words(site: Site, outcome: str) -> None:
    root = tree(site, site.minimal(**planted_reports.OUTCOMES[outcome]))
    assert root.every("title")[0].text == f"{outcome}: A beside B"
    assert outcome in root.every("h1")[0].text
    first = root.every("main")[0].every("section")[0].text
    assert (
        HEADLINES[outcome] in first
        and "held-out documents" in first
        and "the margin is +5.00%" in first
    )


def test_a_ruined_model_has_a_page_without_nonsense(site: Site) -> None:
    root = tree(site, site.minimal(**planted_reports.RUINED))
    words = root.every("main")[0].every("section")[0].text
    assert "beyond all bounds: it is 900 nats a token worse than fp16" in words
    # a ratio beyond any number cannot be drawn
    assert [figure.attributes["id"] for figure in root.every("figure")] == ["paired"]


def test_fp16_may_be_what_is_served(site: Site) -> None:
    root = tree(site, site.baseline_served())
    words = root.every("main")[0].every("section")[0].text
    assert "PASS" in words and "fp16 is the baseline itself: nothing was quantized" in words
    assert (
        "paired" not in [figure.attributes["id"] for figure in root.every("figure")]
        and "FAIL" in root.by_id("variants").text
    )
