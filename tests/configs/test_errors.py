"""Errors cross a process border, as JSON and as pickles, and arrive as what they were."""

from __future__ import annotations

import ast
import json
import pickle

import pytest

from configs import errors
from configs.errors import LmflowsError, StepFailed, family, from_dict
from configs.paths import PROJECT

CLASSES = sorted(set(family(LmflowsError)), key=lambda cls: cls.__name__)


def fields(error: LmflowsError) -> tuple[type, str, str, str, str]:
    return type(error), str(error), error.message, error.where, error.hint


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_survives_json(cls: type[LmflowsError]) -> None:
    error = cls("what\nhappened", where="here: ä", hint="do this")
    assert fields(from_dict(json.loads(json.dumps(error.to_dict())))) == fields(error)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_survives_a_pickle(cls: type[LmflowsError]) -> None:
    error = cls("what happened", where="here", hint="do this")
    assert fields(pickle.loads(pickle.dumps(error))) == fields(error)


def test_an_error_of_a_class_that_only_the_child_knows_is_a_failed_step() -> None:
    error = from_dict(
        {"type": "NoSuchError", "message": "what", "where": "here", "hint": "do this"}
    )
    assert fields(error) == fields(StepFailed("what", where="here", hint="do this"))


def test_the_text_says_where_what_and_what_to_do() -> None:
    assert str(LmflowsError("what", where="here", hint="do this")) == "here: what -> do this"


def test_the_text_has_no_empty_parts() -> None:
    assert str(LmflowsError("what")) == "what"


@pytest.mark.parametrize("cls", CLASSES)
def test_only_a_broken_transfer_and_a_busy_gpu_are_worth_another_try(
    cls: type[LmflowsError],
) -> None:
    assert cls.retryable == (cls in (errors.TransferError, errors.GpuBusy))
    assert cls.exit_status > 0


def test_the_docstring_tells_the_whole_tree() -> None:
    def told(cls: type[LmflowsError], depth: int) -> list[tuple[int, str]]:
        children = cls.__subclasses__()
        return [(depth, cls.__name__), *(line for c in children for line in told(c, depth + 1))]

    tree = (errors.__doc__ or "").split("\n\n")[1].splitlines()
    indents = [(len(line) - len(line.lstrip()), line.split()[0]) for line in tree]
    assert [((indent - 4) // 2, name) for indent, name in indents] == told(LmflowsError, 0)


def test_errors_are_defined_in_one_module_so_that_every_process_knows_all() -> None:
    names = {cls.__name__ for cls in CLASSES}
    elsewhere = [
        f"{path.relative_to(PROJECT)}: {node.name}"
        for package in ("flows", "tasks", "artifacts", "configs")
        for path in (PROJECT / package).rglob("*.py")
        if path != PROJECT / "configs" / "errors.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and names & {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    ]
    assert elsewhere == []
