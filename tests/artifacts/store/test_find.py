"""An artifact is named by the first digits of its digest."""

from __future__ import annotations

import pytest

from artifacts.store.find import match
from configs.errors import ArtifactMissing

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize("shape", ["{:.6}", "{:.63}", "{}", "sha256:{:.6}"])
def test_a_prefix_names_the_one_artifact_that_starts_with_it(shape: str) -> None:
    assert match(shape.format(DIGEST), ["f" * 64, DIGEST], where="here") == DIGEST


@pytest.mark.parametrize("shape", ["", "{:.5}", "sha256:", "sha256:{:.5}"])
def test_a_prefix_below_six_digits_names_nothing(shape: str) -> None:
    with pytest.raises(ArtifactMissing, match="too short"):
        match(shape.format(DIGEST), [DIGEST], where="here")


def test_a_prefix_that_nothing_starts_with_is_missing() -> None:
    with pytest.raises(ArtifactMissing, match="no artifact starts with"):
        match("zzzzzz", [DIGEST], where="here")


def test_a_prefix_of_two_artifacts_names_neither_and_the_same_one_twice_is_one() -> None:
    two = ["abcdef" + "0" * 58, "abcdef" + "1" * 58]
    with pytest.raises(ArtifactMissing, match="2 artifacts start with"):
        match("abcdef", two, where="here")
    assert match("abcdef1", two + two, where="here") == two[1]
