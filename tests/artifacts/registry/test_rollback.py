"""The way back, in one write, on a local store and on S3."""

from __future__ import annotations

import pytest

from artifacts.registry.refs import Served
from artifacts.store.local import LocalStore
from configs.errors import PromotionRefused, StaleRef
from tests.support.places import Place
from tests.support.promotions import back, blob, now, ref, three, up


def test_rollbacks_go_back_one_promotion_each(place: Place) -> None:
    one, two, _ = three(place)
    done = back(place)
    assert (
        done.moved
        and done.now.digest == two.candidate
        and (done.now.action, done.now.back_to, done.now.why) == ("rollback", 1, "worse")
    )
    assert back(place).now.digest == one.candidate
    with pytest.raises(PromotionRefused, match="nothing before this"):
        back(place)
    assert len(ref(place).entries) == 5


def test_a_rollback_restores_report_and_variant(place: Place) -> None:
    plain, small = place.judged(), place.judged(variant="w4a16-kv8")
    up(place, plain.candidate, report=plain.report)
    up(place, plain.candidate, report=small.report)
    assert back(place).now.served == Served(
        digest=plain.candidate, report=plain.report, variant="w4a16", engine="transformers"
    )


def test_a_rollback_to_anything_in_its_history_and_nothing_else(place: Place) -> None:
    one, two, three_ = three(place)
    assert back(place, to=one.candidate[:8]).now.served == ref(place).entries[0].served
    assert back(place, to=three_.candidate).now.back_to == 2
    assert not back(place, to=three_.candidate).moved
    other = place.judged("other")
    with pytest.raises(
        PromotionRefused,
        match=(
            f"no artifact starts with .* in its history.*it has had {one.candidate[:12]},"
            f" {two.candidate[:12]}; "
        ),
    ):
        back(place, to=other.candidate)
    with pytest.raises(PromotionRefused, match="too short"):
        back(place, to="")
    with pytest.raises(StaleRef):
        back(place, expect=one.candidate)
    assert now(place) == three_.candidate


def test_there_is_no_way_back_from_nothing(place: Place) -> None:
    with pytest.raises(PromotionRefused, match="points to nothing"):
        back(place)


def test_a_rollback_to_what_is_gone_says_what_is_whole(place: Place) -> None:
    one, two, three_ = three(place)
    place.remove("blobs", blob(place, two.candidate, "model.safetensors"))
    reason = (
        f"{two.candidate[:12]} is not whole.*missing: model.safetensors.*whole are"
        f" {one.candidate[:12]}.*--to {one.candidate[:12]}"
    )
    with pytest.raises(PromotionRefused, match=reason):
        back(place)
    place.remove("manifests", one.report)
    with pytest.raises(PromotionRefused, match="nothing else of its history is whole"):
        back(place)
    assert now(place) == three_.candidate


def test_a_rollback_is_one_write_and_reads_no_weights(place: Place) -> None:
    three(place)
    if place.server is not None:
        place.server.forget()
        back(place)
        assert (
            len(place.server.requests("PUT")) == 1
            and not place.server.requests("POST")
            and not place.server.requests("DELETE")
        )
        assert not place.server.requests("GET", "/blobs/")
        return
    assert isinstance(place.store, LocalStore)
    root = place.store.root
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    for path in root.rglob("*"):
        if path.is_file() and "blobs" in path.parts:
            path.chmod(0)
    back(place)
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert {
        path.relative_to(root).as_posix() for path in after if before.get(path) != after[path]
    } == {"refs/m/dev.json"}
