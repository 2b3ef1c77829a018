"""README and docs: the README is short, and what the pages name exists: files, modules, links,
commands, make targets and the keys of a config."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from configs.paths import PROJECT
from configs.reader import load
from flows.cli.app import app

PAGES = sorted(
    [*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md"), *(PROJECT / "docs").glob("*/*.md")]
)
# what is true of the past may name what is gone
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
ROOMS = ("artifacts", "benchmarks", "configs", "docs", "examples", "flows", "tasks", "tests")
FILE = re.compile(rf"(?<![\w./-])((?:{'|'.join(ROOMS)})/[\w./-]*\w)")
MODULE = re.compile(rf"(?<![\w./-])((?:{'|'.join(ROOMS)})(?:\.\w+)+)")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

every_page = pytest.mark.parametrize(
    "page", PRESENT, ids=lambda page: str(page.relative_to(PROJECT))
)


def test_the_readme_is_short() -> None:
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 150


@every_page
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    named = set(FILE.findall(LINK.sub("]", page.read_text())))
    assert [name for name in sorted(named) if not (PROJECT / name).exists()] == []


@every_page
def test_every_module_that_a_page_names_is_there(page: Path) -> None:
    named = set(MODULE.findall(page.read_text()))
    assert [name for name in sorted(named) if not _is_code(name)] == []


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target, anchor in LINK.findall(page.read_text()):
        if "://" in target:
            continue
        there = (page.parent / target).resolve() if target else page
        if not there.exists() or (anchor and anchor not in _anchors(there)):
            broken.append(f"{target}#{anchor}")
    assert broken == []


@every_page
def test_every_command_that_a_page_shows_exists(page: Path) -> None:
    named = set(re.findall(r"lmflows ((?:[a-z][\w-]*)(?: [a-z][\w-]*)?)", _code(page)))
    assert [words for words in sorted(named) if not _is_command(words.split())] == []


@every_page
def test_every_make_target_that_a_page_shows_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", _code(page))) <= targets


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(document, id=f"{page.stem}-{number}")
        for page in PRESENT
        for number, (language, text) in enumerate(BLOCK.findall(page.read_text()))
        if language == "yaml"
        for document in [yaml.safe_load(text)]
    ],
)
def test_every_config_that_a_page_shows_is_valid(document: dict[str, Any], tmp_path: Path) -> None:
    """A part of a config is completed by the demo's."""
    whole = yaml.safe_load((PROJECT / "configs" / "demo.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(whole | document))
    load(tmp_path / "config.yaml", check_files=False)


def _code(page: Path) -> str:
    """All of a page that stands in a block or between backticks."""
    text = page.read_text()
    blocks = [block for _, block in BLOCK.findall(text)]
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))])


def _is_code(name: str) -> bool:
    """Whether a dotted name is a module, or a name in one."""
    place = PROJECT.joinpath(*name.split("."))
    if place.is_dir() or place.with_suffix(".py").is_file():
        return True
    module = place.parent.with_suffix(".py")
    if not module.is_file():
        module = place.parent / "__init__.py"
    return module.is_file() and re.search(rf"\b{place.name}\b", module.read_text()) is not None


def _is_command(words: list[str]) -> bool:
    command: Any = get_command(app)
    for word in words:
        commands = getattr(command, "commands", None)
        if commands is None:
            return True  # an argument
        command = commands.get(word)
        if command is None:
            return False
    return True


def _anchors(page: Path) -> Iterator[str]:
    """The anchors that a hub makes of a page's headings."""
    for heading in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE):
        yield re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
