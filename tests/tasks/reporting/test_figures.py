"""Which figures of quality a page has, and what stands in each caption."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.store.local import LocalStore
from tasks.report import ReportRequest
from tasks.reporting.data import collect
from tasks.reporting.page import render
from tests.support.html_tree import Element, Tree
from tests.support.planted_reports import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(LocalStore(tmp_path))


def tree(site: Site, request: ReportRequest) -> Element:
    return Tree(render(collect(request, site.store))).root


def test_a_run_has_every_plot_and_each_caption_says_how_many(site: Site) -> None:
    figures = {
        figure.attributes["id"]: figure for figure in tree(site, site.whole()).every("figure")
    }
    captions = {name: figure.every("figcaption")[0].text for name, figure in figures.items()}
    assert list(figures) == [
        "paired",
        "forest",
        "pareto-speed",
        "pareto-memory",
        "throughput",
        "latency",
    ]
    assert "n = 24 documents, 6,527 tokens." in captions["paired"]
    assert "n (documents): w4a16 24, w4a16-kv8 24." in captions["forest"]
    assert (
        "n (requests, by concurrency): fp16 400, 400, 400; w4a16 400, 400, 400; w4a16-kv8 400, 400,"
        " 400." in captions["throughput"]
    )
    assert "n (answered requests): fp16 400, w4a16 400, w4a16-kv8 400." in captions["latency"]
    assert (
        "n (requests): fp16 400, w4a16 400, w4a16-kv8 400; n (documents): w4a16 24, w4a16-kv8 24."
        in captions["pareto-speed"]
    )
    assert "n (documents): w4a16 24, w4a16-kv8 24; memory is counted" in captions["pareto-memory"]
    for name, figure in figures.items():
        drawing = figure.every("svg")[0]
        title, description = (figure.by_id(f"{name}-{part}") for part in ("title", "description"))
        assert (
            drawing.attributes["aria-labelledby"] == f"{name}-title {name}-description"
            and title.text
            and description.text
        )
