"""The report's page: what it says, what stands in each caption, and that nothing a model says can
do anything there."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

import pytest

from artifacts.store.local import LocalStore
from tasks.report import ReportRequest
from tasks.reporting import page, plots
from tasks.reporting.plots import Option, with_dominated
from tests.support import stories
from tests.support.stories import Site

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Element:
    """A tag with its attributes, its children and its text."""

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag, self.attributes, self.children, self.words = (
            tag,
            attributes,
            list[Element](),
            list[str](),
        )

    def every(self, tag: str) -> list[Element]:
        return [
            found
            for child in self.children
            for found in ([child] if child.tag == tag else []) + child.every(tag)
        ]

    def one(self, identity: str) -> Element:
        return next(
            found for found in [self, *self.descendants()] if found.attributes.get("id") == identity
        )

    def descendants(self) -> list[Element]:
        return [found for child in self.children for found in [child, *child.descendants()]]

    @property
    def text(self) -> str:
        return "".join(self.words)


class Tree(HTMLParser):
    """Parses strictly: every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(html)
        assert len(self.open) == 1, [element.tag for element in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice: {attrs}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.words.append(data)


@pytest.fixture
def site(tmp_path: object) -> Site:
    return Site(LocalStore(tmp_path))  # type: ignore[arg-type]


def rendered(site: Site, request: ReportRequest) -> str:
    return page.render(page.collect(request, site.store))


def tree(site: Site, request: ReportRequest) -> Element:
    return Tree(rendered(site, request)).root


HEADLINES = {
    "PASS": "w4a16 may stand in for fp16",
    "FAIL": "w4a16 may not stand in for fp16",
    "INCONCLUSIVE": "It is open whether w4a16",
    "ANOMALOUS": "Nothing can be said of w4a16 yet",
}


@pytest.mark.parametrize("outcome", sorted(stories.OUTCOMES))
def test_the_verdict_comes_first_in_plain_words(site: Site, outcome: str) -> None:
    root = tree(site, site.minimal(**stories.OUTCOMES[outcome]))
    assert root.every("title")[0].text == f"{outcome}: A beside B"
    assert outcome in root.every("h1")[0].text
    first = root.every("main")[0].every("section")[0].text
    assert (
        HEADLINES[outcome] in first
        and "held-out documents" in first
        and "the margin is +5.00%" in first
    )


def test_a_ruined_model_has_a_page_without_nonsense(site: Site) -> None:
    root = tree(site, site.minimal(**stories.RUINED))
    words = root.every("main")[0].every("section")[0].text
    assert "beyond all bounds: it is 900 nats a token worse than fp16" in words
    # a ratio beyond any number cannot be drawn
    assert [figure.attributes["id"] for figure in root.every("figure")] == ["paired"]


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
        title, description = (figure.one(f"{name}-{part}") for part in ("title", "description"))
        assert (
            drawing.attributes["aria-labelledby"] == f"{name}-title {name}-description"
            and title.text
            and description.text
        )


def test_a_load_that_is_invalid_for_one_variant_is_not_what_they_are_compared_at(
    site: Site,
) -> None:
    """fp16 has too many errors at 32 at a time."""
    root = tree(site, site.whole())
    assert root.one("latency").every("h3")[0].text == "Latency at concurrency 8"
    assert "A red ring marks a run that is invalid" in root.one("throughput").text
    rows = [[cell.text for cell in row.children] for row in root.one("speed").every("tr")]
    assert [row[:2] for row in rows if row[-1].startswith("no: ")] == [["fp16", "concurrency 32"]]


def test_without_a_load_test_the_engines_speed_is_drawn(site: Site) -> None:
    root = tree(
        site,
        ReportRequest(
            name="m",
            served="w4a16",
            config=stories.config(),
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
    assert "n (rounds at each batch size): fp16 3, w4a16 3." in root.one("decode").text
    assert (
        "0.82×" in root.text
        and "9,676 instead of 11,800 tokens/s at batch size 128; 1.90× at 1 (n = 3 rounds)"
        in root.text
    )


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


def test_two_variants_of_one_name_are_told_apart_by_their_digests(site: Site) -> None:
    story = page.collect(site.twins(), site.store)
    first, second = (item.model.short for item in site.twins().variants)
    assert (story.parent_label, story.served.label) == (f"w4a16 {first}", f"w4a16 {second}")
    assert f"w4a16 {second} may stand in for w4a16 {first}" in Tree(page.render(story)).root.text


def test_an_artifact_beside_itself(site: Site) -> None:
    one = site.minimal().variants[1].model_copy(update={"evidence": None})
    same = one.model_copy(
        update={
            "evidence": stories.compared(
                site.store, site.candidate, site.candidate, site.texts, "w4a16", loss=0, spread=0
            )
        }
    )
    story = page.collect(
        ReportRequest(name="same", served="w4a16", config=stories.config(), variants=(one, same)),
        site.store,
    )
    assert (
        story.parent is story.subjects[0] and story.served is story.subjects[1] and not story.itself
    )
    assert "is the same as that of" in Tree(page.render(story)).root.text


def test_fp16_may_be_what_is_served(site: Site) -> None:
    root = tree(site, site.baseline_served())
    words = root.every("main")[0].every("section")[0].text
    assert "PASS" in words and "fp16 is the baseline itself: nothing was quantized" in words
    assert (
        "paired" not in [figure.attributes["id"] for figure in root.every("figure")]
        and "FAIL" in root.one("variants").text
    )


def test_attempts_choice_tasks_checks_recipe_lineage_and_steps(site: Site) -> None:
    root = tree(site, site.whole())
    attempts = [item.text for item in root.one("attempts").every("li")]
    assert "FAIL" in attempts[0] and "The recipe as it was asked for" in attempts[0]
    assert (
        "PASS" in attempts[1]
        and "quantize.search_scale: true" in attempts[1]
        and "kept" in attempts[1]
    )
    assert "the fastest of those that pass" in root.one("choice").text
    rows = [[cell.text for cell in row.children] for row in root.one("tasks").every("tr")]
    assert rows[1][:7] == ["arc_easy", "570", "72.1%", "71.1%", "14", "8", "3.9%"] and rows[1][
        7:9
    ] == ["0.143", "0.286"]
    checks = root.one("checks")
    assert (
        "✓ passed repetition" in checks.text
        and "the sky is blue because the sky is blue" in checks.text
        and "not applicable" in checks.text
    )
    assert (
        "search_scale" in root.one("recipe").text
        and "1,889 million parameters" in root.one("recipe").text
    )
    lineage = root.one("lineage")
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
    assert "quantize" in root.one("steps").text and "14.20 GB" in root.one("steps").text
    assert "KV int4 needs a head dimension of 128; this model has 64" in root.one("variants").text
    assert "NVIDIA H200" in root.one("hardware").text


def test_an_artifact_that_lies_elsewhere_ends_the_lineage(site: Site) -> None:
    absent = page.ancestry("ab" * 32, "candidate", site.store)
    assert (absent.kind, absent.parents) == ("not in this store", ()) and page.recipe_of(
        "ab" * 32, site.store
    ) == {}


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
        for element in root.one("answers").every("div")
        if element.attributes.get("class") == "said"
    )
    assert said.attributes["dir"] == "auto"
    assert said.text.startswith(
        "<script>alert(1)</script><img src=x onerror=alert(1)> &amp; \"'</textarea></style>{{ 7 * 7"
        " }}{% raw %}␀␇␛[31m⟨U+202E⟩gnp.exe⟨U+2066⟩⟨U+007F⟩ مرحبا AAA"
    )
    assert said.text.endswith("more characters)") and len(said.text) < page.LONGEST_TEXT + 200
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


def test_a_load_test_of_many_requests_stays_small(site: Site) -> None:
    """A curve has no more points than a screen can show."""
    short = plots.distributions([("s", {"w4a16": [1 + number / 50 for number in range(50)]})])
    long = plots.distributions(
        [("s", {"w4a16": [1 + number / 50_000 for number in range(50_000)]})]
    )
    assert len(long) < len(short) + 60 * plots.MOST_STEPS


def test_what_another_variant_beats_is_dominated() -> None:
    options = [
        Option("slow and good", 1.0, 10),
        Option("fast and worse", 1.05, 20),
        Option("slow and worse", 1.05, 10),
        Option("twin", 1.0, 10),
    ]
    assert [one.dominated for one in with_dominated(options, more_is_better=True)] == [
        False,
        False,
        True,
        False,
    ]
    assert [one.dominated for one in with_dominated(options, more_is_better=False)] == [
        False,
        True,
        True,
        False,
    ]
