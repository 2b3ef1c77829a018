"""What must speak for an artifact before a stage points to it, on a local store and on S3."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.registry.refs import Stage
from configs.errors import PromotionRefused, SignatureRefused
from configs.policy import Policy
from tests.support.places import Place
from tests.support.promotions import back, blob, now, ref, refused, up


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


def test_a_pass_for_something_else_does_not_count(place: Place) -> None:
    one, other = place.judged("one"), place.judged("other")
    refused(
        place,
        f"about {other.candidate[:12]}, not about {one.candidate[:12]}",
        one.candidate,
        report=other.report,
    )


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


PARTS = [
    ("candidate", "config.json"),
    ("candidate", "model.safetensors"),
    ("evidence", "evidence.json"),
    ("report", "verdict.json"),
    ("report", "report.md"),
]


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


def test_a_stage_before_that_moves_on_while_we_look_is_noticed(place: Place) -> None:
    one, two = place.judged("one"), place.judged("two")
    up(place, one.candidate)

    def meanwhile(_fraction: float, _text: str) -> None:
        if now(place) == one.candidate:
            up(place, two.candidate)

    with pytest.raises(PromotionRefused, match=f"dev has {two.candidate[:12]}"):
        up(place, one.candidate, "staging", progress=meanwhile)
    assert now(place, "staging") is None


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
