"""The table of engines: whatever the schema knows, the table has, with the whole protocol; and
nobody else asks which engine it is."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator

import pytest

from configs.engines import BY_NAME, ENGINES
from configs.paths import PROJECT
from tasks import engines
from tasks.engines.protocol import EngineModule

OFFERS = {name for name in vars(EngineModule) if not name.startswith("_")}
FUNCTIONS = sorted(OFFERS - {"LIBRARIES"})
# where an engine may be asked what it is: where it is declared, and in its own module
AT_HOME = {PROJECT / "configs" / "engines.py", *(PROJECT / "tasks" / "engines").glob("*.py")}


def test_every_engine_of_the_schema_has_its_line_and_no_other() -> None:
    assert set(engines.MODULES) == set(BY_NAME)


@pytest.mark.parametrize("name", sorted(engines.MODULES))
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_module_offers_the_whole_protocol(name: str, function: str) -> None:
    module = importlib.import_module(engines.MODULES[name])
    _, *wanted = inspect.signature(getattr(EngineModule, function)).parameters
    assert list(inspect.signature(getattr(module, function)).parameters) == wanted


@pytest.mark.parametrize("name", sorted(engines.MODULES))
def test_every_module_names_the_libraries_of_its_measurements(name: str) -> None:
    libraries = importlib.import_module(engines.MODULES[name]).LIBRARIES
    assert libraries and all(isinstance(library, str) for library in libraries)


def test_the_table_imports_no_engine_before_somebody_asks() -> None:
    heavy = ["torch", "transformers", "lmdeploy", *engines.MODULES.values()]
    program = f"import sys, tasks.engines; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_nobody_else_asks_which_engine_it_is() -> None:
    """What depends on the engine is an attribute of its class or a function of its module; else
    a new engine touches every place that asks."""
    classes = {engine.__name__ for engine in ENGINES}
    found = [
        f"{path.relative_to(PROJECT)}:{line}"
        for room in ("artifacts", "configs", "flows", "tasks")
        for path in sorted((PROJECT / room).rglob("*.py"))
        if path not in AT_HOME
        for line in questions(path.read_text(), classes)
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(engine, EngineTurbomind)",
        "isinstance(engine, (int, EngineTransformers))",
        "isinstance(engine, EnginePytorch | EngineTurbomind)",
        "isinstance(engine, engines.EngineTurbomind)",
        "type(engine) is EngineTurbomind",
        "issubclass(kind, EngineTurbomind)",
        "if engine.name == 'turbomind': pass",
        "engine.name in ('turbomind', 'pytorch')",
        "{'turbomind': 1}[engine.name]",
        "match engine:\n    case EngineTurbomind(): pass",
    ],
)
def test_the_search_finds_such_a_question(code: str) -> None:
    assert list(questions(code, {engine.__name__ for engine in ENGINES}))


def questions(source: str, classes: set[str]) -> Iterator[int]:
    """The lines of a program that use an engine's class, compare with an engine's name, or have a
    table of such names."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in classes:
                yield node.lineno
            case ast.Compare(left=left, comparators=others) if any(
                map(_names_an_engine, (left, *others))
            ):
                yield node.lineno
            case ast.Dict(keys=keys) if any(key and _names_an_engine(key) for key in keys):
                yield node.lineno


def _names_an_engine(node: ast.expr) -> bool:
    """Whether it is an engine's name, or several; with others among them they are libraries."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    names = [part.value for part in parts if isinstance(part, ast.Constant)]
    return bool(parts) and len(names) == len(parts) and set(names) <= set(BY_NAME)
