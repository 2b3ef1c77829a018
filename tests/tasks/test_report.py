"""The report step: what it stores, and of what it makes no report."""

# covers artifacts/records/report.py

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artifacts.records.report import Verdict
from artifacts.store.local import LocalStore
from tasks.report import ReportRequest, report
from tasks.runner.step import Context
from tests.support import planted_reports
from tests.support.planted_reports import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(LocalStore(tmp_path))


def test_the_artifact_holds_verdict_table_text_and_page(site: Site) -> None:
    request = site.whole()
    result = report(request, Context(site.store))
    folder, manifest = result.report.path, site.store.manifest(result.report.digest)
    assert result.report.kind == "report"
    assert [entry.path for entry in manifest.files] == [
        "report.html",
        "report.md",
        "variants.json",
        "verdict.json",
    ]
    assert Verdict.model_validate_json((folder / "verdict.json").read_bytes()) == result.verdict
    assert json.loads((folder / "variants.json").read_text()) == list(result.variants)
    assert (folder / "report.md").read_text() == result.text and (
        folder / "report.html"
    ).read_text().startswith("<!DOCTYPE html>")
    evidence = request.outcome("w4a16").evidence
    assert evidence is not None and {parent.role: parent.digest for parent in manifest.parents} == {
        "candidate": site.candidate.digest,
        "parent": site.parent.digest,
        "evidence": evidence.digest,
    }
    assert report(request, Context(site.store)).report.digest == result.report.digest


@pytest.mark.parametrize("outcome", sorted(planted_reports.OUTCOMES))
def test_the_text_begins_with_the_verdict(site: Site, outcome: str) -> None:
    result = report(site.minimal(**planted_reports.OUTCOMES[outcome]), Context(site.store))
    assert result.verdict.outcome == outcome and result.text.startswith(
        f"# A beside B: {outcome}\n\n"
    )
    assert all(f"- {reason}" in result.text for reason in result.verdict.reasons)


def test_no_evidence_about_what_is_served_is_an_error(site: Site) -> None:
    request = ReportRequest(
        name="m",
        served="w4a16-kv8",
        config=planted_reports.config(),
        variants=(site.baseline(), site.variant()),
    )
    with pytest.raises(ValueError, match="no evidence about w4a16-kv8"):
        report(request, Context(site.store))
