"""Names that cannot be, and stages that are not what somebody believes them to be."""

from __future__ import annotations

from typing import Any

import pytest

from configs.errors import ConfigError, StaleRef
from tests.support.places import Place, promote, roll_back
from tests.support.promotions import refused, up


def test_a_stage_that_is_not_what_was_seen_is_not_changed(place: Place) -> None:
    one, two = place.judged("one"), place.judged("two")
    refused(place, "points to nothing, not to", one.candidate, expect=one.candidate, error=StaleRef)
    up(place, one.candidate, expect="nothing")
    for seen in ("nothing", two.candidate, "sha256:" + two.candidate[:6]):
        refused(
            place, f"points to {one.candidate[:12]}", two.candidate, expect=seen, error=StaleRef
        )
    for bad in ("", "12345", one.candidate + "0", "latest"):
        refused(place, "is no digest", two.candidate, expect=bad, error=ConfigError)
    up(place, two.candidate, expect=f"sha256:{one.candidate}")


@pytest.mark.parametrize(
    ("model", "stage"),
    [("../up", "dev"), ("", "dev"), ("a/b", "dev"), ("m", "live"), ("m", "DEV"), ("m", "../dev")],
)
def test_names_that_cannot_be_are_bad_input(place: Place, model: str, stage: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot be a model's name|no stage"):
        promote(place.store, model, "dev", stage)
    with pytest.raises(ConfigError, match=r"cannot be a model's name|no stage"):
        roll_back(place.store, model, stage)
