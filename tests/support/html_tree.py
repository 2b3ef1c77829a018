"""HTML as a tree of elements, parsed strictly."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Element:
    """A tag with its attributes, its children and its text."""

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Element] = []
        self.words: list[str] = []

    def every(self, tag: str) -> list[Element]:
        return [
            found
            for child in self.children
            for found in ([child] if child.tag == tag else []) + child.every(tag)
        ]

    def by_id(self, identity: str) -> Element:
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
