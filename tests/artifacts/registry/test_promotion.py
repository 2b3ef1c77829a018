"""A stage is pointed to what has passed, on a local store and on S3."""

from __future__ import annotations

import pytest

from artifacts.registry.refs import STAGES, Served
from configs.errors import StaleRef
from tests.support.places import Place
from tests.support.promotions import blob, now, ref, refused, up


def test_a_pass_goes_from_dev_to_staging_to_production(place: Place) -> None:
    one = place.judged()
    first = up(place, one.candidate[:10])
    second = up(place, "dev", "staging", why="it holds")
    third = up(place, one.candidate, "production", approved_by="boss@there")
    served = Served(digest=one.candidate, report=one.report, variant="w4a16", engine="transformers")
    for done, stage in zip((first, second, third), STAGES, strict=True):
        assert (
            done.moved
            and done.before is None
            and done.now.served == served
            and done.ref == ref(place, stage)
        )
        assert (done.now.action, done.now.who, done.now.forced, done.now.back_to) == (
            "promote",
            "me@here",
            None,
            None,
        )
    assert (second.now.why, third.now.approved_by) == ("it holds", "boss@there")


def test_the_next_one_says_what_was_there_before(place: Place) -> None:
    one, two = place.judged("one"), place.judged("two")
    up(place, one.candidate)
    done = up(place, two.candidate, expect=one.candidate[:8])
    assert done.before is not None and (done.before.digest, done.now.digest) == (
        one.candidate,
        two.candidate,
    )


def test_what_is_there_already_is_verified_and_not_written_again(place: Place) -> None:
    one = place.judged()
    up(place, one.candidate)
    before = place.bytes_of("refs/m/dev.json")
    done = up(place, one.candidate)
    assert (
        not done.moved
        and done.now == done.before == ref(place).current
        and place.bytes_of("refs/m/dev.json") == before
    )
    place.spoil("blobs", blob(place, one.candidate, "model.safetensors"))
    refused(place, "changed: model.safetensors", one.candidate)


def test_force_leaves_no_trace_where_it_was_not_needed(place: Place) -> None:
    one = place.judged()
    assert up(place, one.candidate, "dev", force="hurry").now.forced is None
    assert up(place, "dev", "staging", force="hurry").now.forced is None


def test_somebody_who_was_faster_is_not_overwritten(place: Place) -> None:
    one, two = place.judged("one"), place.judged("two")

    def meanwhile(_fraction: float, _text: str) -> None:
        if now(place) is None:
            up(place, two.candidate)

    with pytest.raises(StaleRef, match=f"moved to {two.candidate[:12]}"):
        up(place, one.candidate, progress=meanwhile)
    assert [entry.digest for entry in ref(place).entries] == [two.candidate]
