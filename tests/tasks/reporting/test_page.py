"""The report's page: what it says, what stands in each caption, and that nothing a model says can
do anything there."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from artifacts.store.local import LocalStore
from tasks.report import ReportRequest
from tasks.reporting.data import collect
from tasks.reporting.page import render
from tasks.reporting.text import LONGEST_TEXT
from tests.support.html_tree import Element, Tree
from tests.support.planted_reports import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(LocalStore(tmp_path))


def rendered(site: Site, request: ReportRequest) -> str:
    return render(collect(request, site.store))


def tree(site: Site, request: ReportRequest) -> Element:
    return Tree(rendered(site, request)).root


def test_what_a_comparison_does_not_have_is_left_out(site: Site) -> None:
    root = tree(site, site.minimal())
    assert [section.attributes.get("id") for section in root.every("section")] == [
        None,
        "quality",
        "variants",
        "answers",
        "recipe",
        "hardware",
        "lineage",
    ]
    links = [link.attributes["href"] for link in root.every("nav")[0].every("a")]
    assert links == ["#quality", "#variants", "#answers", "#recipe", "#hardware", "#lineage"]


def test_attempts_choice_tasks_checks_recipe_lineage_and_steps(site: Site) -> None:
    root = tree(site, site.whole())
    attempts = [item.text for item in root.by_id("attempts").every("li")]
    assert "FAIL" in attempts[0] and "The recipe as it was asked for" in attempts[0]
    assert (
        "PASS" in attempts[1]
        and "quantize.search_scale: true" in attempts[1]
        and "kept" in attempts[1]
    )
    assert "the fastest of those that pass" in root.by_id("choice").text
    rows = [[cell.text for cell in row.children] for row in root.by_id("tasks").every("tr")]
    assert rows[1][:7] == ["arc_easy", "570", "72.1%", "71.1%", "14", "8", "3.9%"] and rows[1][
        7:9
    ] == ["0.143", "0.286"]
    checks = root.by_id("checks")
    assert (
        "✓ passed repetition" in checks.text
        and "the sky is blue because the sky is blue" in checks.text
        and "not applicable" in checks.text
    )
    assert (
        "search_scale" in root.by_id("recipe").text
        and "1,889 million parameters" in root.by_id("recipe").text
    )
    lineage = root.by_id("lineage")
    assert [role.text for role in lineage.every("span") if role.attributes["class"] == "role"] == [
        "evidence",
        "candidate",
        "model",
        "texts",
        "parent",
        "texts",
    ]
    assert site.parent.digest in {
        code.attributes["title"] for code in lineage.every("code") if "title" in code.attributes
    }
    assert "quantize" in root.by_id("steps").text and "14.20 GB" in root.by_id("steps").text
    assert "KV int4 needs a head dimension of 128; this model has 64" in root.by_id("variants").text
    assert "NVIDIA H200" in root.by_id("hardware").text


HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)> &amp; \"'</textarea></style>{{ 7 * 7"
    " }}{% raw %}\x00\x07\x1b[31m\u202egnp.exe\u2066\x7f مرحبا " + "A" * 9000
)


def test_what_a_model_says_is_shown_and_never_obeyed(site: Site) -> None:
    sample = {"prompt": HOSTILE, "parent": HOSTILE, "candidate": HOSTILE}
    check = {
        "name": HOSTILE,
        "n": 1,
        "parent_failures": 0,
        "candidate_failures": 1,
        "new_failures": 1,
        "passed": False,
        "why": HOSTILE,
        "examples": (sample,),
    }
    request = site.minimal(samples=(sample,), checks=(check,))
    html = rendered(site, request)
    root = Tree(html).root
    assert {element.tag for element in root.descendants()} & {
        "script",
        "img",
        "textarea",
        "iframe",
        "object",
        "link",
        "form",
    } == set()
    assert not [
        name
        for element in root.descendants()
        for name in element.attributes
        if name.startswith("on")
    ]
    said = next(
        element
        for element in root.by_id("answers").every("div")
        if element.attributes.get("class") == "said"
    )
    assert said.attributes["dir"] == "auto"
    assert said.text.startswith(
        "<script>alert(1)</script><img src=x onerror=alert(1)> &amp; \"'</textarea></style>{{ 7 * 7"
        " }}{% raw %}␀␇␛[31m⟨U+202E⟩gnp.exe⟨U+2066⟩⟨U+007F⟩ مرحبا AAA"
    )
    assert said.text.endswith("more characters)") and len(said.text) < LONGEST_TEXT + 200
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)


@pytest.mark.parametrize("name", ["whole", "minimal"])
def test_it_is_one_file_that_asks_for_nothing(site: Site, name: str) -> None:
    html = rendered(site, getattr(site, name)())
    root = Tree(html).root
    assert (
        "://" not in html
        and "@import" not in html
        and not re.search(r"url\((?!#)", html)
        and "<script" not in html
    )
    addresses = [
        value
        for element in root.descendants()
        for key, value in element.attributes.items()
        if key in ("href", "src", "xlink:href")
    ]
    names = [
        element.attributes["id"] for element in root.descendants() if "id" in element.attributes
    ]
    assert addresses and all(
        address.startswith("#") and address[1:] in names for address in addresses
    )
    assert len(names) == len(set(names)), "an id twice"
    assert len(html.encode()) < 1_500_000


def test_headings_go_down_one_level_at_a_time(site: Site) -> None:
    levels = [
        int(element.tag[1])
        for element in tree(site, site.whole()).descendants()
        if re.fullmatch("h[1-6]", element.tag)
    ]
    assert (
        levels[0] == 1
        and levels.count(1) == 1
        and all(after <= before + 1 for before, after in itertools.pairwise(levels))
    )


def test_the_same_request_gives_the_same_page(site: Site) -> None:
    request = site.whole()
    assert rendered(site, request) == rendered(site, request)
