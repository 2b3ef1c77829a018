"""The look of the house, held by a test: tests where their name says, and no name in a string that
nothing has.

`import-linter` holds who may import whom (pyproject.toml).
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from configs.paths import PROJECT

PACKAGES = ("artifacts", "configs", "flows", "tasks")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (PROJECT / folder).rglob("*.py"))


def test_no_test_module_imports_another() -> None:
    """What two of them need is in tests/support."""
    found = [
        f"{path.relative_to(PROJECT)}: {match}"
        for path in sources("tests")
        for match in re.findall(
            r"^\s*(?:from|import) tests\.(?:\w+\.)*test_\w+.*", path.read_text(), re.M
        )
    ]
    assert found == []


COVERS = re.compile(r"^# covers (\S+)$", re.M)


def named() -> set[Path]:
    """The modules that tests of another name are about, too: `# covers PATH`."""
    return {Path(name) for path in sources("tests") for name in COVERS.findall(path.read_text())}


def covered() -> set[Path]:
    """The modules and rooms that have a test: of their name and in their place, or one that names
    them."""
    tests = [path.relative_to(PROJECT / "tests") for path in sources("tests")]
    return named() | {
        path.with_name(path.name.removeprefix("test_"))
        for path in tests
        if path.name.startswith("test_")
    }


def test_the_test_of_a_module_is_found_by_its_name() -> None:
    modules = {
        path.relative_to(PROJECT) for path in sources(*PACKAGES) if path.name != "__init__.py"
    }
    tested = covered()
    alone = [path for path in modules if not {path, path.parent.with_suffix(".py")} & tested]
    assert sorted(map(str, alone)) == []
    assert sorted(map(str, named() - modules)) == [], "there is no such module"


def test_a_module_that_a_string_names_is_there() -> None:
    """Of `python -m MODULE`, in code, scripts and documents."""
    places = [
        *sources(*PACKAGES, "tests", "benchmarks"),
        PROJECT / "Makefile",
        PROJECT / "README.md",
    ]
    places += sorted((PROJECT / "docs").rglob("*.md"))
    pattern = rf'-m["\', ]+((?:{"|".join((*PACKAGES, "tests", "benchmarks"))})(?:\.\w+)+)'
    found = {
        (str(path.relative_to(PROJECT)), name)
        for path in places
        for name in re.findall(pattern, path.read_text())
    }
    assert len(found) > 10
    assert [item for item in found if importlib.util.find_spec(item[1]) is None] == []
