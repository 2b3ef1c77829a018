"""The report in short: its sections, its figures, and that an answer is not taken for markdown."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.store.local import LocalStore
from tasks.report import ReportRequest
from tasks.reporting.data import collect
from tasks.reporting.markdown import markdown, table
from tests.support.planted_reports import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(LocalStore(tmp_path))


def test_a_run_shows_all_that_it_has_and_a_comparison_only_what_it_has(site: Site) -> None:
    def headings(request: ReportRequest) -> list[str]:
        return [
            line
            for line in markdown(collect(request, site.store)).splitlines()
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
    text = markdown(collect(site.whole(), site.store))
    assert "| arc_easy | 570 | 72.1% | 71.1% | 14 | 8 | 3.9% | 0.143 | 0.286 |" in text
    assert "| repetition | passed | 40 | 2 | 2 new loops of 40 could be chance |" in text
    assert (
        "| 1 | the recipe as it was asked for | FAIL |" in text
        and "| 2 | quantize.search_scale: true | PASS |" in text
    )
    assert "**Chosen for throughput**: the fastest of those that pass" in text
    assert text.index("## Attempts") < text.index("| variant | verdict |") < text.index("## Tasks")


def test_an_answer_is_not_taken_for_markdown(site: Site) -> None:
    answer = "# no heading\n<script>x</script> `code` | [link](javascript:x)\x1b[31m"
    sample = {"prompt": "p", "parent": answer, "candidate": "```"}
    text = markdown(collect(site.minimal(samples=(sample,)), site.store))
    assert (
        "- fp16: `` # no heading <script>x</script> `code` | [link](javascript:x) [31m ``" in text
        and "- w4a16: ```` ``` ````" in text
    )


def test_a_table_without_rows_is_empty_and_a_bar_in_a_cell_stays_in_it() -> None:
    assert table([]) == "" and table([{"a": "x|y"}]).splitlines()[-1] == "| x\\|y |"
