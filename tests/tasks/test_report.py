"""The report step: what it stores, and the short markdown of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artifacts.records.report import Verdict
from artifacts.store.local import LocalStore
from configs.units import size
from tasks.report import ReportRequest, report
from tasks.reporting.markdown import quoted, table
from tasks.runner.step import Context
from tests.support import stories
from tests.support.stories import Site


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


@pytest.mark.parametrize("outcome", sorted(stories.OUTCOMES))
def test_the_text_begins_with_the_verdict(site: Site, outcome: str) -> None:
    result = report(site.minimal(**stories.OUTCOMES[outcome]), Context(site.store))
    assert result.verdict.outcome == outcome and result.text.startswith(
        f"# A beside B: {outcome}\n\n"
    )
    assert all(f"- {reason}" in result.text for reason in result.verdict.reasons)


def test_the_table_of_variants(site: Site) -> None:
    rows = {row["variant"]: row for row in report(site.whole(), Context(site.store)).variants}
    assert (
        list(rows) == ["fp16", "w4a16", "w4a16-kv8", "w4a16-kv4"]
        and len({tuple(row) for row in rows.values()}) == 1
    )
    assert (rows["fp16"]["verdict"], rows["fp16"]["ratio"], rows["fp16"]["size"]) == (
        "baseline",
        "1",
        "3.79 GB",
    )
    assert (rows["w4a16"]["verdict"], rows["w4a16"]["ratio"], rows["w4a16"]["perplexity"]) == (
        "PASS",
        "1.0213 [1.0094, 1.0334]",
        "10.667",
    )
    assert rows["w4a16"]["decode tokens/s"] == "346 (batch 1), 3332 (batch 16), 9676 (batch 128)"
    assert (rows["w4a16-kv4"]["verdict"], rows["w4a16-kv4"]["ratio"]) == (
        "KV int4 needs a head dimension of 128",
        "",
    )


def test_a_baseline_that_is_broken_is_not_called_one(site: Site) -> None:
    request = site.minimal()
    odd = stories.compared(
        site.store,
        site.parent,
        site.parent,
        site.texts,
        "fp16",
        loss=0,
        spread=0,
        documents=tuple(
            {"tokens": 100, "nll_parent": 900.0, "nll_candidate": 900.0, "kl": 0.0, "same_top": 100}
            for _ in range(24)
        ),
    )
    fp16 = request.variants[0].model_copy(update={"evidence": odd})
    rows = report(
        request.model_copy(update={"variants": (fp16, request.variants[1])}), Context(site.store)
    ).variants
    assert rows[0]["verdict"] == "ANOMALOUS"


def test_a_run_tells_all_of_its_story_and_a_comparison_only_what_it_has(site: Site) -> None:
    def headings(request: ReportRequest) -> list[str]:
        return [
            line
            for line in report(request, Context(site.store)).text.splitlines()
            if line.startswith("## ")
        ]

    assert headings(site.whole()) == [
        "## Attempts",
        "## Tasks",
        "## Generation checks",
        "## Answers",
        "## Recipe",
        "## Steps",
        "## Lineage",
    ]
    assert headings(site.minimal()) == ["## Answers", "## Recipe", "## Lineage"]


def test_figures_of_tasks_checks_attempts_and_choice(site: Site) -> None:
    text = report(site.whole(), Context(site.store)).text
    assert "| arc_easy | 570 | 72.1% | 71.1% | 14 | 8 | 3.9% | 0.143 | 0.286 |" in text
    assert "| repetition | passed | 40 | 2 | 2 new loops of 40 could be chance |" in text
    assert (
        "| 1 | the recipe as it was asked for | FAIL |" in text
        and "| 2 | quantize.search_scale: true | PASS |" in text
    )
    assert "**Chosen for throughput**: the fastest of those that pass" in text
    assert text.index("## Attempts") < text.index("| variant | verdict |") < text.index("## Tasks")


def test_no_evidence_about_what_is_served_is_an_error(site: Site) -> None:
    request = ReportRequest(
        name="m",
        served="w4a16-kv8",
        config=stories.config(),
        variants=(site.baseline(), site.variant()),
    )
    with pytest.raises(ValueError, match="no evidence about w4a16-kv8"):
        report(request, Context(site.store))


def test_an_answer_is_not_taken_for_markdown(site: Site) -> None:
    answer = "# no heading\n<script>x</script> `code` | [link](javascript:x)\x1b[31m"
    sample = {"prompt": "p", "parent": answer, "candidate": "```"}
    text = report(site.minimal(samples=(sample,)), Context(site.store)).text
    assert (
        "- fp16: `` # no heading <script>x</script> `code` | [link](javascript:x) [31m ``" in text
        and "- w4a16: ```` ``` ````" in text
    )


def test_pieces() -> None:
    assert quoted("") == "` (nothing) `" and len(quoted("x" * 10_000)) < 700
    assert table([]) == "" and table([{"a": "x|y"}]).splitlines()[-1] == "| x\\|y |"
    assert (size(999_900_000), size(1_330_000_000)) == ("999.9 MB", "1.33 GB")
