"""What may be promoted and what not, on a local store and on S3; and the way back, in one write."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.registry.promotion import promote, rollback
from artifacts.registry.refs import STAGES, Ref, Registry, Served, Stage
from artifacts.store.local import LocalStore
from configs.errors import ConfigError, PromotionRefused, SignatureRefused, StaleRef, TransferError
from configs.policy import Policy
from tests.support import places
from tests.support.places import OPEN, Judged, Place


def up(place: Place, what: str, to: Stage = "dev", **more: Any) -> Any:
    given: dict[str, Any] = {"who": "me@here", "why": "better", "policy": OPEN}
    return promote(place.store, "m", what, to, **given | more)


def back(place: Place, stage: Stage = "dev", **more: Any) -> Any:
    given: dict[str, Any] = {"who": "me@here", "why": "worse", "policy": OPEN}
    return rollback(place.store, "m", stage, **given | more)


def ref(place: Place, stage: Stage = "dev") -> Ref:
    return Registry(place.store.objects).read("m", stage).ref


def now(place: Place, stage: Stage = "dev") -> str | None:
    return entry.digest if (entry := ref(place, stage).current) else None


def test_a_moved_stage_is_told_as_moved_whatever_comes_after_the_write(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = place.judged()

    def breaks(_digest: str) -> bool:
        raise TransferError("the connection failed", where="here")

    def gone(_digest: str) -> bool:
        return False

    append = Registry.append
    cases: list[tuple[Stage, Callable[[str], bool], str]] = [
        ("dev", breaks, "could not be asked.*connection failed"),
        ("staging", gone, "garbage collection has removed"),
    ]
    for stage, has, says in cases:
        with monkeypatch.context() as patch:

            def then(
                *args: Any,
                patch: pytest.MonkeyPatch = patch,
                has: Callable[[str], bool] = has,
                **more: Any,
            ) -> Ref:
                done = append(*args, **more)
                patch.setattr(place.store, "has", has)
                return done

            patch.setattr(Registry, "append", then)
            done = up(place, one.candidate, stage)
        assert done.moved and re.search(says, done.problem)
        assert now(place, stage) == one.candidate


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


# -- up


def test_a_pass_goes_from_dev_to_staging_to_production(place: Place) -> None:
    one = place.judged()
    first = up(place, one.candidate[:10])
    second = up(place, "dev", "staging", why="it holds")
    third = up(place, one.candidate, "production", approved_by="boss@there")
    served = Served(
        digest=one.candidate, verdict=one.report, variant="w4a16", engine="transformers"
    )
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


@pytest.mark.parametrize("to", ["staging", "production"])
def test_no_stage_is_left_out_unless_forced_with_a_reason(place: Place, to: Stage) -> None:
    one, other = place.judged(), place.judged("other")
    before: Stage = "dev" if to == "staging" else "staging"
    refused(
        place,
        f"{before} has nothing, not {one.candidate[:12]}.*`lmflows registry promote m"
        f" {one.candidate[:12]} {before}",
        one.candidate,
        to,
    )
    up(place, other.candidate, before, force="only this once")
    refused(place, f"{before} has {other.candidate[:12]}, not", one.candidate, to)
    for empty in ("", "  "):
        refused(place, "needs a reason", one.candidate, to, force=empty)
    done = up(place, one.candidate, to, force="production burns")
    assert done.now.forced == ref(place, to).entries[-1].forced == "production burns"


def test_force_leaves_no_trace_where_it_was_not_needed(place: Place) -> None:
    one = place.judged()
    assert up(place, one.candidate, "dev", force="hurry").now.forced is None
    assert up(place, "dev", "staging", force="hurry").now.forced is None


def test_a_stage_that_moved_on_or_never_had_it_is_no_source(place: Place) -> None:
    one, two = place.judged("one"), place.judged("two")
    refused(place, "dev of m points to nothing", "dev", "staging")
    refused(place, "not promoted to itself", "dev", "dev")
    up(place, one.candidate)
    up(place, two.candidate)
    refused(
        place, f"dev has {two.candidate[:12]}, not {one.candidate[:12]}", one.candidate, "staging"
    )
    assert up(place, "dev", "staging").now.digest == two.candidate


@pytest.mark.parametrize("outcome", ["FAIL", "ANOMALOUS"])
def test_a_report_that_speaks_against_it_makes_somebody_choose(place: Place, outcome: str) -> None:
    good, bad = place.judged(), place.judged(outcome=outcome)
    assert good.candidate == bad.candidate
    with pytest.raises(
        PromotionRefused, match=r"has passed by report .* and failed by report .*--report"
    ):
        promote(place.store, "m", good.candidate, "dev", who="me", why="", policy=OPEN)
    assert promote(
        place.store, "m", good.candidate, "dev", who="me", why="", policy=OPEN, report=good.report
    ).moved
    assert (
        promote(place.store, "m", "dev", "staging", who="me", why="", policy=OPEN).now.verdict
        == good.report
    )


@pytest.mark.parametrize("force", [None, "hurry"])
@pytest.mark.parametrize("outcome", ["FAIL", "INCONCLUSIVE", "ANOMALOUS"])
def test_only_a_pass_is_promoted_force_or_not(
    place: Place, outcome: str, force: str | None
) -> None:
    one = place.judged(outcome=outcome)
    refused(place, f"{outcome} for w4a16 on transformers", one.candidate, force=force)
    refused(
        place, f"is {outcome}: it is a {outcome}", one.candidate, report=one.report, force=force
    )


def test_without_a_report_there_is_no_pass(place: Place) -> None:
    candidate, *_ = places.model(place.workshop, "new")
    place.bring(candidate)
    refused(place, f"no PASS for {candidate[:12]}", candidate)
    refused(place, "of kind w4a16 and has no verdict", candidate, report=candidate)
    refused(place, "no artifact starts with", "0123456789")
    refused(place, "too short", "12")


def test_a_pass_for_something_else_does_not_count(place: Place) -> None:
    one, other = place.judged("one"), place.judged("other")
    refused(
        place,
        f"about {other.candidate[:12]}, not about {one.candidate[:12]}",
        one.candidate,
        report=other.report,
    )


@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        ({"verdict": {"candidate": "a" * 64}}, "something else than its manifest says"),
        ({"verdict": {"evidence": "OTHER"}}, "something else"),
        ({"evidence": {"candidate": "a" * 64}}, "its evidence .* is about aaaaaaaaaaaa"),
        (
            {"evidence": {"variant": "fp16"}},
            "its verdict is about w4a16, and its evidence about fp16",
        ),
    ],
)
def test_a_report_that_contradicts_itself_is_refused(
    place: Place, forged: dict[str, Any], reason: str
) -> None:
    other = place.judged("other")
    if forged.get("verdict", {}).get("evidence"):
        forged = {"verdict": {"evidence": other.evidence}}
    one = place.judged(**forged)
    refused(place, reason, one.candidate, report=one.report)
    refused(place, "no PASS", one.candidate)


def test_a_report_that_names_a_candidate_that_was_not_judged_is_refused(place: Place) -> None:
    bad = place.judged("bad", outcome="FAIL")
    good = place.judged("good", named=bad.candidate)
    refused(place, "something else than its manifest says", bad.candidate, report=good.report)
    refused(place, "something else than its manifest says", bad.candidate)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"outcome": "PASS"}'])
def test_a_report_without_a_real_verdict_is_refused(place: Place, content: bytes) -> None:
    one = place.judged()
    fake = places.commit(
        place.workshop,
        "report",
        {"verdict.json": content},
        [("candidate", one.candidate), ("evidence", one.evidence)],
    )
    refused(place, "not what one looks like", one.candidate, report=place.bring(fake))


def test_the_evidence_is_of_the_variant_and_engine_that_will_be_served(place: Place) -> None:
    one = place.judged(variant="w4a16-kv8", engine="turbomind")
    refused(place, "no PASS for .* as w4a16;", one.candidate, variant="w4a16")
    refused(
        place,
        "about variant w4a16-kv8, not w4a16",
        one.candidate,
        variant="w4a16",
        report=one.report,
    )
    refused(place, "no PASS for .* on pytorch;", one.candidate, engine="pytorch")
    done = up(place, one.candidate, variant="w4a16-kv8", engine="turbomind")
    assert (done.now.variant, done.now.engine) == ("w4a16-kv8", "turbomind")
    refused(place, "about engine turbomind, not pytorch", "dev", "staging", engine="pytorch")


def test_of_several_ways_to_serve_it_one_must_be_named(place: Place) -> None:
    plain, small = place.judged(), place.judged(variant="w4a16-kv8")
    assert plain.candidate == small.candidate
    refused(
        place, "has passed as w4a16 on transformers, as w4a16-kv8 on transformers", plain.candidate
    )
    assert up(place, plain.candidate, variant="w4a16-kv8").now.verdict == small.report
    refused(
        place,
        f"dev has it as w4a16-kv8 on transformers by report {small.report[:12]}, not",
        plain.candidate,
        "staging",
        report=plain.report,
    )
    assert up(place, plain.candidate, "staging").now.variant == "w4a16-kv8"


PARTS = [
    ("candidate", "config.json"),
    ("candidate", "model.safetensors"),
    ("evidence", "evidence.json"),
    ("report", "verdict.json"),
    ("report", "report.md"),
]


def blob(place: Place, digest: str, name: str) -> str:
    return place.store.manifest(digest).entry(name).sha256


@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_damage_anywhere_is_found_and_refused(place: Place, how: str) -> None:
    one = place.judged()
    up(place, one.candidate)
    for part, name in PARTS:
        damaged: str = getattr(one, part)
        lost = blob(place, damaged, name)
        place.spoil("blobs", lost, byte=0) if how == "flipped" else place.remove("blobs", lost)
        for what in ("dev", one.candidate):
            refused(
                place, f"{'changed' if how == 'flipped' else 'missing'}: {name}", what, "staging"
            )
        assert [problem.path for problem in place.store.verify(damaged)] == [name]
        # whole again, for the next
        place.spoil("blobs", lost, byte=0) if how == "flipped" else place.judged()
    assert up(place, "dev", "staging").moved


@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_a_damaged_or_missing_manifest_is_refused_ancestors_too(place: Place, how: str) -> None:
    one = place.judged()
    reason = (
        "does not hash to its name|not what one looks like"
        if how == "flipped"
        else "no artifact|no PASS"
    )
    for part in ("candidate", "evidence", "report", "parent", "texts"):
        damaged: str = getattr(one, part)
        (place.spoil if how == "flipped" else place.remove)("manifests", damaged)
        refused(place, reason, one.candidate)
        refused(place, reason, one.candidate, report=one.report)
        place.spoil("manifests", damaged) if how == "flipped" else place.judged()
    assert up(place, one.candidate).moved


# -- races


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


def test_somebody_who_was_faster_is_not_overwritten(place: Place) -> None:
    one, two = place.judged("one"), place.judged("two")

    def meanwhile(_fraction: float, _text: str) -> None:
        if now(place) is None:
            up(place, two.candidate)

    with pytest.raises(StaleRef, match=f"moved to {two.candidate[:12]}"):
        up(place, one.candidate, progress=meanwhile)
    assert [entry.digest for entry in ref(place).entries] == [two.candidate]


def test_a_stage_before_that_moves_on_while_we_look_is_noticed(place: Place) -> None:
    one, two = place.judged("one"), place.judged("two")
    up(place, one.candidate)

    def meanwhile(_fraction: float, _text: str) -> None:
        if now(place) == one.candidate:
            up(place, two.candidate)

    with pytest.raises(PromotionRefused, match=f"dev has {two.candidate[:12]}"):
        up(place, one.candidate, "staging", progress=meanwhile)
    assert now(place, "staging") is None


@pytest.mark.parametrize(
    ("model", "stage"),
    [("../up", "dev"), ("", "dev"), ("a/b", "dev"), ("m", "live"), ("m", "DEV"), ("m", "../dev")],
)
def test_names_that_cannot_be_are_bad_input(place: Place, model: str, stage: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot be a model's name|no stage"):
        promote(place.store, model, "dev", stage, who="", why="", policy=OPEN)
    with pytest.raises(ConfigError, match=r"cannot be a model's name|no stage"):
        rollback(place.store, model, stage, who="", why="", policy=OPEN)


# -- signatures


def test_where_the_policy_asks_for_signatures_what_has_none_is_refused(
    place: Place, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from artifacts.registry.signing import sign

    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (tmp_path / "key.pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    strict = Policy.model_validate(
        {
            "require_signature": True,
            "trusted": [{"type": "key", "public_key": tmp_path / "key.pub"}],
            "sign": {"type": "key", "private_key": tmp_path / "key.pem"},
        }
    )
    one, two = place.judged("one"), place.judged("two")
    assert strict.sign is not None
    sign(place.store, one.candidate, strict.sign)
    refused(
        place, one.report[:12], one.candidate, policy=strict, force="hurry", error=SignatureRefused
    )
    sign(place.store, one.report, strict.sign)
    up(place, two.candidate)  # where nobody asked
    up(place, one.candidate, policy=strict)
    with pytest.raises(SignatureRefused):
        back(place, policy=strict)
    assert now(place) == one.candidate
    back(place)
    assert back(place, to=one.candidate, policy=strict).now.digest == one.candidate


# -- back


def three(place: Place) -> list[Judged]:
    made = [place.judged(name) for name in ("one", "two", "three")]
    for one in made:
        up(place, one.candidate)
    return made


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
        digest=plain.candidate, verdict=plain.report, variant="w4a16", engine="transformers"
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
