"""Errors cross a process border, as JSON and as pickles, and arrive as what they were."""

from __future__ import annotations

import json
import pickle

import pytest

from configs import errors
from configs.errors import LmflowsError, StepFailed, from_dict

CLASSES = sorted(
    (
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, LmflowsError) and cls is not LmflowsError
    ),
    key=lambda cls: cls.__name__,
)


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
def test_only_a_broken_transfer_is_worth_another_try(cls: type[LmflowsError]) -> None:
    assert cls.retryable == (cls is errors.TransferError)
    assert cls.exit_status > 0
