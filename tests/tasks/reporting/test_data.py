"""What a report is made of: which variant is which, and where the lineage ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.store.local import LocalStore
from tasks.report import ReportRequest
from tasks.reporting.data import ancestry, collect, recipe_of
from tasks.reporting.page import render
from tests.support import planted_reports
from tests.support.html_tree import Tree
from tests.support.planted_reports import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(LocalStore(tmp_path))


def test_two_variants_of_one_name_are_told_apart_by_their_digests(site: Site) -> None:
    data = collect(site.twins(), site.store)
    first, second = (item.model.short for item in site.twins().variants)
    assert (data.parent_label, data.served.label) == (f"w4a16 {first}", f"w4a16 {second}")
    assert f"w4a16 {second} may stand in for w4a16 {first}" in Tree(render(data)).root.text


def test_an_artifact_beside_itself(site: Site) -> None:
    first = site.minimal().variants[1].model_copy(update={"evidence": None})
    same = first.model_copy(
        update={
            "evidence": planted_reports.compared(
                site.store, site.candidate, site.candidate, site.texts, "w4a16", loss=0, spread=0
            )
        }
    )
    data = collect(
        ReportRequest(
            name="same", served="w4a16", config=planted_reports.config(), variants=(first, same)
        ),
        site.store,
    )
    assert data.parent is data.subjects[0] and data.served is data.subjects[1] and not data.itself
    assert "is the same as that of" in Tree(render(data)).root.text


def test_an_artifact_that_lies_elsewhere_ends_the_lineage(site: Site) -> None:
    absent = ancestry("ab" * 32, "candidate", site.store)
    assert (absent.kind, absent.parents) == ("not in this store", ()) and recipe_of(
        "ab" * 32, site.store
    ) == {}
