"""The look of the house, held by a test: modules and functions of a readable size, few parameters,
tests where their name says, and no name in a string that nothing has.

`import-linter` holds who may import whom (pyproject.toml).
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.paths import PROJECT

PACKAGES = ("artifacts", "configs", "flows", "tasks")
LINES_OF_A_MODULE = 400
LINES_OF_A_FUNCTION = 60
PARAMETERS = 6
# a terminal's command has an option a parameter, and a flow's parameters are its form
MANY_PARAMETERS = ("flows/cli/",)
Function = ast.FunctionDef | ast.AsyncFunctionDef
Finding = Callable[[Path, ast.Module], Iterator[str]]


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (PROJECT / folder).rglob("*.py"))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def long_modules(path: Path, tree: ast.Module) -> Iterator[str]:
    lines = len(path.read_text().splitlines())
    if lines > LINES_OF_A_MODULE:
        yield f"{lines} lines"


def long_functions(path: Path, tree: ast.Module) -> Iterator[str]:
    for function in functions(tree):
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1
        if lines > LINES_OF_A_FUNCTION:
            yield f"{function.name} has {lines} lines"


def is_a_flow(function: Function) -> bool:
    return any(
        isinstance(node, ast.Name) and node.id == "flow"
        for decorator in function.decorator_list
        for node in ast.walk(decorator)
    )


def many_parameters(path: Path, tree: ast.Module) -> Iterator[str]:
    if path.relative_to(PROJECT).as_posix().startswith(MANY_PARAMETERS):
        return
    for function in functions(tree):
        given = function.args
        names = [item.arg for item in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        counted = [name for name in names if name not in ("self", "cls")]
        if len(counted) > PARAMETERS and not is_a_flow(function):
            yield f"{function.name} has {len(counted)} parameters"


def nested_conditions(path: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp) and any(
            isinstance(part, ast.IfExp) for part in ast.walk(node) if part is not node
        ):
            yield f"line {node.lineno}: a conditional expression within another"


@pytest.mark.parametrize(
    "finding", [long_modules, long_functions, many_parameters, nested_conditions]
)
def test_the_product_reads_in_pieces(finding: Finding) -> None:
    found = [
        f"{path.relative_to(PROJECT)}: {what}"
        for path in sources(*PACKAGES)
        for what in finding(path, parsed(path))
    ]
    assert found == []


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
