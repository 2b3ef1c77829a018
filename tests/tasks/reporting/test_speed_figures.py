"""Which figures of speed a page has: under load, or of the engines by themselves."""

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


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(LocalStore(tmp_path))


def tree(site: Site, request: ReportRequest) -> Element:
    return Tree(render(collect(request, site.store))).root


def test_a_load_that_is_invalid_for_one_variant_is_not_what_they_are_compared_at(
    site: Site,
) -> None:
    """fp16 has too many errors at 32 at a time."""
    root = tree(site, site.whole())
    assert root.by_id("latency").every("h3")[0].text == "Latency at concurrency 8"
    assert "A red ring marks a run that is invalid" in root.by_id("throughput").text
    rows = [[cell.text for cell in row.children] for row in root.by_id("speed").every("tr")]
    assert [row[:2] for row in rows if row[-1].startswith("no: ")] == [["fp16", "concurrency 32"]]


def test_without_a_load_test_the_engines_speed_is_drawn(site: Site) -> None:
    root = tree(
        site,
        ReportRequest(
            name="m",
            served="w4a16",
            config=planted_reports.config(),
            variants=(site.baseline(), site.variant()),
        ),
    )
    assert [figure.attributes["id"] for figure in root.every("figure")] == [
        "paired",
        "forest",
        "pareto-speed",
        "pareto-memory",
        "decode",
    ]
    assert "n (rounds at each batch size): fp16 3, w4a16 3." in root.by_id("decode").text
    assert (
        "0.82×" in root.text
        and "9,676 instead of 11,800 tokens/s at batch size 128; 1.90× at 1 (n = 3 rounds)"
        in root.text
    )
