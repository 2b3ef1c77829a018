"""What the tests of promotions and rollbacks share: one model of a store, moved and looked at."""

from __future__ import annotations

from typing import Any

import pytest

from artifacts.registry.refs import Ref, Registry, Stage
from configs.errors import PromotionRefused
from tests.support.places import Judged, Place, promote, roll_back


def up(place: Place, what: str, to: Stage = "dev", **more: Any) -> Any:
    given: dict[str, Any] = {"who": "me@here", "why": "better"}
    return promote(place.store, "m", what, to, **given | more)


def back(place: Place, stage: Stage = "dev", **more: Any) -> Any:
    given: dict[str, Any] = {"who": "me@here", "why": "worse"}
    return roll_back(place.store, "m", stage, **given | more)


def ref(place: Place, stage: Stage = "dev") -> Ref:
    return Registry(place.store.objects).read("m", stage).ref


def now(place: Place, stage: Stage = "dev") -> str | None:
    entry = ref(place, stage).current
    return None if entry is None else entry.digest


def refused(
    place: Place,
    match: str,
    what: str,
    to: Stage = "dev",
    error: type[Exception] = PromotionRefused,
    **more: Any,
) -> None:
    """It is refused for this reason, and no ref has changed."""
    keys = place.store.objects.keys("refs/")
    before = [place.bytes_of(key) for key in keys]
    with pytest.raises(error, match=match):
        up(place, what, to, **more)
    assert (place.store.objects.keys("refs/"), [place.bytes_of(key) for key in keys]) == (
        keys,
        before,
    )


def blob(place: Place, digest: str, name: str) -> str:
    return place.store.manifest(digest).entry(name).sha256


def three(place: Place) -> list[Judged]:
    made = [place.judged(name) for name in ("one", "two", "three")]
    for one in made:
        up(place, one.candidate)
    return made
