"""Signatures: the library's own command line accepts them, and nothing but what a trusted key has
signed is accepted by us."""

# covers artifacts/registry/keys.py
# covers artifacts/registry/signature.py
# covers artifacts/store/signatures.py

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts.manifest import ModelArtifact, Parent
from artifacts.registry.signing import check, require_signed, sign, signatures
from artifacts.store.ancestors import push_lineage
from artifacts.store.local import LocalStore
from artifacts.store.open import open_store
from artifacts.store.signatures import carry_signatures
from configs.errors import ArtifactMissing, ConfigError, SignatureRefused
from configs.policy import Policy, SigningCertificate, SigningKey, TrustedCertificate, TrustedKey
from tests.support import places
from tests.support.keys import NOW, Keys, private_pem, public_pem

PASSWORD = "correct horse"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    (tmp_path / "keys").mkdir()
    return Keys(tmp_path / "keys")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def artifact(store: LocalStore) -> ModelArtifact:
    return committed(store)


def committed(store: LocalStore, weights: bytes = b"weights", **origin: Any) -> ModelArtifact:
    with store.staging() as staging:
        staging.write("model.safetensors", weights)
        staging.write("sub folder/ä.json", b"{}")
        return store.commit(staging, "fp16", **origin)


def refused(
    store: LocalStore,
    artifact: ModelArtifact,
    *trusted: TrustedKey | TrustedCertificate,
    because: str,
) -> None:
    with pytest.raises(SignatureRefused, match=because):
        check(store, artifact.digest, trusted)


def planted(store: LocalStore, digest: str, data: bytes, name: str = "f" * 64) -> None:
    store.objects.swap(f"signatures/{digest}/{name}.json", data, seen=None)


def changed(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The signature file with another statement under the old signature."""
    bundle = json.loads(data)
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(statement)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    return json.dumps(bundle).encode()


# -- what holds


@pytest.mark.parametrize(
    "curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name
)
def test_what_is_signed_by_a_trusted_key_holds(
    store: LocalStore, artifact: ModelArtifact, keys: Keys, curve: ec.EllipticCurve
) -> None:
    signer, trusted = keys.pair("team", curve)
    key = sign(store, artifact.digest, signer)
    found = check(store, artifact.digest, [trusted])
    assert (
        found.who == "key team.pub"
        and found.key == key
        and key.startswith(f"signatures/{artifact.digest}/")
    )


def test_the_statement_names_the_digest_and_exactly_the_files(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    sign(store, artifact.digest, keys.pair("team")[0])
    statement = json.loads(
        base64.b64decode(
            json.loads(signatures(store, artifact.digest)[0])["dsseEnvelope"]["payload"]
        )
    )
    manifest = store.manifest(artifact.digest)
    assert [subject["name"] for subject in statement["subject"]] == [artifact.digest]
    assert statement["predicate"]["resources"] == [
        {"name": entry.path, "algorithm": "sha256", "digest": entry.sha256}
        for entry in manifest.files
    ]


def test_a_key_with_a_password_takes_it_from_the_environment(
    store: LocalStore, artifact: ModelArtifact, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer, trusted = keys.pair("team", password=PASSWORD)
    with pytest.raises(ConfigError, match="KEY_PASSWORD is empty -> export KEY_PASSWORD="):
        sign(store, artifact.digest, signer)
    monkeypatch.setenv("KEY_PASSWORD", "wrong")
    with pytest.raises(
        ConfigError, match=r"team\.pem: is not a private key, or the password is wrong"
    ):
        sign(store, artifact.digest, signer)
    with pytest.raises(ConfigError, match="has a password -> name an environment variable"):
        sign(store, artifact.digest, signer.model_copy(update={"password_env": None}))
    assert signatures(store, artifact.digest) == []
    monkeypatch.setenv("KEY_PASSWORD", PASSWORD)
    sign(store, artifact.digest, signer)
    assert check(store, artifact.digest, [trusted]).who == "key team.pub"


def test_a_certificate_chain_up_to_a_trusted_root_holds(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    root = keys.authority()
    middle = keys.authority("middle", root)
    sign(store, artifact.digest, middle.signer(chain=(middle.path,)))
    assert (
        check(store, artifact.digest, [root.trusted]).who
        == "CN=bot, certified by certificate root.crt"
    )


def test_signing_again_adds_nothing_and_another_signer_signs_beside(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    (first, trust_first), (second, trust_second) = keys.pair("first"), keys.pair("second")
    certificate = keys.authority().signer()
    assert sign(store, artifact.digest, first) == sign(store, artifact.digest, first)
    assert sign(store, artifact.digest, certificate) == sign(store, artifact.digest, certificate)
    sign(store, artifact.digest, second)
    assert len(signatures(store, artifact.digest)) == 3
    assert (
        check(store, artifact.digest, [trust_second]).key
        != check(store, artifact.digest, [trust_first]).key
    )


def test_a_false_signature_in_the_name_of_a_key_does_not_keep_it_from_signing(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    signer, trusted = keys.pair("team")
    sign(store, artifact.digest, signer)
    bundle = json.loads(signatures(store, artifact.digest)[0])
    for key in store.objects.keys("signatures/"):
        store.objects.delete(key)
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(b"0" * 70).decode()
    planted(store, artifact.digest, json.dumps(bundle).encode())
    refused(
        store,
        artifact,
        trusted,
        because="ffffffffffff by key team.pub: the signature is not by this key",
    )
    sign(store, artifact.digest, signer)
    assert check(store, artifact.digest, [trusted]).who == "key team.pub"


@pytest.mark.parametrize("kind", ["key", "certificate"])
def test_the_standard_command_line_verifies_the_folder_and_finds_a_flipped_byte(
    store: LocalStore, artifact: ModelArtifact, keys: Keys, tmp_path: Path, kind: str
) -> None:
    """By OpenSSF's own program, on what `pull` brings to another machine."""
    root = keys.authority()
    signer, trusted = keys.pair("team")
    sign(store, artifact.digest, signer if kind == "key" else root.signer())
    pulled = store.pull(artifact.digest, LocalStore(tmp_path / "other"))
    signature = keys.write("model.sig", signatures(store, artifact.digest)[0])
    how: list[str | Path] = (
        ["--public_key", trusted.public_key]
        if kind == "key"
        else ["--certificate_chain", root.path]
    )
    words: list[str | Path] = [
        sys.executable,
        "-m",
        "model_signing",
        "verify",
        kind,
        "--signature",
        signature,
        *how,
    ]
    good = subprocess.run([*words, pulled.path], capture_output=True, text=True)
    assert good.returncode == 0, good.stdout + good.stderr
    weights = pulled.path / "model.safetensors"
    weights.unlink()
    weights.write_bytes(b"Weights")
    bad = subprocess.run([*words, pulled.path], capture_output=True, text=True)
    assert bad.returncode != 0 and "model.safetensors" in bad.stdout + bad.stderr


def test_on_s3_it_is_the_same(keys: Keys, tmp_path: Path) -> None:
    signer, trusted = keys.pair("team")
    with places.bucket() as server:
        place = places.place(server, tmp_path)
        digest = place.bring(committed(place.workshop).digest)
        with pytest.raises(SignatureRefused, match="is not signed"):
            check(place.store, digest, [trusted])
        assert sign(place.store, digest, signer) == sign(place.store, digest, signer)
        assert (
            check(place.store, digest, [trusted]).who == "key team.pub"
            and len(signatures(place.store, digest)) == 1
        )
        with pytest.raises(SignatureRefused, match="Key mismatch"):
            check(place.store, digest, [keys.pair("other")[1]])


def test_signatures_travel_with_what_they_sign(
    store: LocalStore, artifact: ModelArtifact, keys: Keys, tmp_path: Path
) -> None:
    """From a folder to S3 and to another folder, of the parents too; a second push brings a
    signature that has come since."""
    signers, trusted = zip(*(keys.pair(name) for name in ("one", "two")), strict=True)
    child = committed(
        store, b"other weights", parents=(Parent(role="parent", digest=artifact.digest),)
    )
    for made in (artifact, child):
        sign(store, made.digest, signers[0])
    with places.bucket() as server:
        there, here = open_store(server.location("team")), LocalStore(tmp_path / "here")
        push_lineage(store, there, [child.digest])
        assert [check(there, made.digest, trusted).who for made in (artifact, child)] == [
            "key one.pub"
        ] * 2
        sign(store, child.digest, signers[1])
        push_lineage(store, there, [child.digest])
        assert (
            set(signatures(there, child.digest)) == set(signatures(store, child.digest))
            and len(signatures(there, child.digest)) == 2
        )
        there.pull(child.digest, here)
        carry_signatures(there, here, child.digest)
    assert check(here, child.digest, trusted[1:]).who == "key two.pub"


# -- what does not


def test_what_nobody_has_signed_is_refused(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    refused(
        store,
        artifact,
        keys.pair("team")[1],
        because=f"artifact {artifact.digest[:12]}: is not signed -> have it signed",
    )


def test_a_signature_by_another_key_is_refused(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    sign(store, artifact.digest, keys.pair("stranger")[0])
    refused(store, artifact, keys.pair("team")[1], because=r"by key team\.pub: Key mismatch")


def test_a_signature_by_another_key_that_names_the_trusted_one_is_refused(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    (stranger, _), (team, trusted) = keys.pair("stranger"), keys.pair("team")
    other = committed(store, b"other")
    sign(store, artifact.digest, stranger)
    sign(store, other.digest, team)
    bundle, ours = (json.loads(signatures(store, one.digest)[0]) for one in (artifact, other))
    planted(
        store,
        artifact.digest,
        json.dumps(bundle | {"verificationMaterial": ours["verificationMaterial"]}).encode(),
    )
    refused(store, artifact, trusted, because="the signature is not by this key")


def test_a_signature_of_another_artifact_is_refused(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    signer, trusted = keys.pair("team")
    other = committed(store, b"other weights")
    sign(store, other.digest, signer)
    planted(store, artifact.digest, signatures(store, other.digest)[0])
    refused(store, artifact, trusted, because=r"Signature mismatch: .*model\.safetensors")


@pytest.mark.parametrize(
    "origin",
    [{"recipe": {"seed": 1}}, {"parents": (Parent(role="model", digest="a" * 64),)}],
    ids=str,
)
def test_a_signature_of_the_same_files_from_elsewhere_is_refused(
    store: LocalStore, artifact: ModelArtifact, keys: Keys, origin: dict[str, Any]
) -> None:
    """Parents and recipe are signed with the files."""
    signer, trusted = keys.pair("team")
    other = committed(store, **origin)
    sign(store, other.digest, signer)
    planted(store, artifact.digest, signatures(store, other.digest)[0])
    refused(
        store,
        artifact,
        trusted,
        because=f"it is for artifact {other.digest[:12]}, which has the same files",
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda statement: statement["predicate"]["resources"][0].update(digest="0" * 64),
        lambda statement: statement["predicate"]["resources"].pop(),
        lambda statement: statement["subject"][0].update(name="0" * 64),
        lambda statement: statement.update(predicateType="https://model_signing/Digests/v0.1"),
    ],
    ids=["another hash", "a file less", "another name", "the old form"],
)
def test_a_changed_statement_is_refused(
    store: LocalStore, artifact: ModelArtifact, keys: Keys, change: Callable[[dict[str, Any]], None]
) -> None:
    signer, trusted = keys.pair("team")
    data = signatures_of(store, artifact, signer)
    planted(store, artifact.digest, changed(data, change))
    refused(store, artifact, trusted, because="the signature is not by this key")


def test_of_two_statements_in_one_file_the_signed_one_counts(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    """The library reads either spelling of a key; what it has verified must be what is compared."""
    signer, trusted = keys.pair("team")
    other = committed(store, recipe={"the same": "files"})
    true = json.loads(signatures_of(store, other, signer))
    false = json.loads(
        changed(
            json.dumps(true).encode(),
            lambda statement: statement["subject"][0].update(name=artifact.digest),
        )
    )
    for one, two in ((true, false), (false, true)):
        data = json.dumps(one | {"dsse_envelope": two["dsseEnvelope"]}).encode()
        planted(store, artifact.digest, data)
        refused(store, artifact, trusted, because=r"by key team\.pub: ")
        store.objects.delete(f"signatures/{artifact.digest}/{'f' * 64}.json")


def signatures_of(
    store: LocalStore, artifact: ModelArtifact, signer: SigningKey | SigningCertificate
) -> bytes:
    """Sign, take the signature, and leave the store without it."""
    key = sign(store, artifact.digest, signer)
    data = signatures(store, artifact.digest)[0]
    store.objects.delete(key)
    return data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"not json",
        b"[" * 100_000,
        b'{"verificationMaterial":{"publicKey":{}}}',
        b'{"verificationMaterial":null,"dsseEnvelope":null}',
    ],
    ids=lambda data: repr(data[:20]),
)
def test_garbage_is_refused_in_one_line_and_a_good_signature_beside_it_holds(
    store: LocalStore, artifact: ModelArtifact, keys: Keys, data: bytes
) -> None:
    signer, trusted = keys.pair("team")
    root = keys.authority()
    planted(store, artifact.digest, data, "0" * 64)
    with pytest.raises(
        SignatureRefused,
        match=r"000000000000 by key team\.pub: .*; 000000000000 by certificate root\.crt: ",
    ) as caught:
        check(store, artifact.digest, [trusted, root.trusted])
    assert len(str(caught.value).splitlines()) == 1
    sign(store, artifact.digest, signer)
    assert check(store, artifact.digest, [trusted]).who == "key team.pub"


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_a_changed_byte_changes_nothing_or_is_refused(
    store: LocalStore, artifact: ModelArtifact, keys: Keys, place: int, difference: int
) -> None:
    """Some bytes do not count, as the file's own white space; none makes another statement hold."""
    signer, trusted = keys.pair("team")
    data = bytearray(signatures_of(store, artifact, signer))
    data[place % len(data)] ^= difference
    planted(store, artifact.digest, bytes(data))
    try:
        assert check(store, artifact.digest, [trusted]).who == "key team.pub"
    except SignatureRefused:
        return
    finally:
        store.objects.delete(f"signatures/{artifact.digest}/{'f' * 64}.json")
    statement = json.loads(base64.b64decode(json.loads(bytes(data))["dsseEnvelope"]["payload"]))
    assert statement["subject"][0]["name"] == artifact.digest


# -- certificates


def test_a_certificate_of_a_foreign_root_is_refused_even_if_it_has_the_same_name(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    sign(store, artifact.digest, keys.authority("root").signer())
    foreign = keys.authority("root")
    refused(store, artifact, foreign.trusted, because=r"by certificate root\.crt: ")


def test_a_chain_with_a_missing_link_is_refused(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    root = keys.authority()
    sign(store, artifact.digest, keys.authority("middle", root).signer())
    refused(store, artifact, root.trusted, because="unable to get local issuer certificate")


@pytest.mark.parametrize("who", ["bot", "middle", "root"])
def test_a_signature_ends_with_any_certificate_of_its_chain(
    store: LocalStore, artifact: ModelArtifact, keys: Keys, who: str
) -> None:
    """All of them held when the signature was made, which is all that the library asks: but a file
    can have any date."""
    ends = dict.fromkeys(("root", "middle", "bot"), NOW + timedelta(days=2))
    ends[who] = NOW - timedelta(hours=1)
    root = keys.authority(until=ends["root"])
    middle = keys.authority("middle", root, until=ends["middle"])
    sign(store, artifact.digest, middle.signer(chain=(middle.path,), until=ends["bot"]))
    refused(store, artifact, root.trusted, because="certificate has expired")


def test_a_certificate_that_is_not_for_signing_is_refused(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    root = keys.authority()
    sign(store, artifact.digest, root.signer(may_sign=False))
    refused(store, artifact, root.trusted, because="cannot be used for signing")


def test_a_certificate_may_not_certify_another(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    """Who may sign may not say who may sign."""
    root = keys.authority()
    bot = root.signer()
    forger = keys.authority("forger")
    forger.key = serialization.load_pem_private_key(bot.private_key.read_bytes(), None)  # type: ignore[assignment]
    forger.name = "bot"
    sign(store, artifact.digest, forger.signer("friend", chain=(bot.certificate,)))
    refused(store, artifact, root.trusted, because="invalid CA certificate")


def test_of_all_whom_a_root_has_certified_only_the_named_may_sign(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    root = keys.authority()
    sign(store, artifact.digest, root.signer("intern"))
    named = root.trusted.model_copy(update={"names": ("bot", "chief")})
    refused(store, artifact, named, because="certified for intern, and only bot, chief may sign")
    sign(store, artifact.digest, root.signer("chief"))
    assert (
        check(store, artifact.digest, [named]).who == "CN=chief, certified by certificate root.crt"
    )


def test_a_signature_by_certificate_is_none_by_key_and_the_other_way_round(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    root, (signer, trusted) = keys.authority(), keys.pair("team")
    sign(store, artifact.digest, root.signer())
    refused(store, artifact, trusted, because=r"by key team\.pub: ")
    other = committed(store, b"other")
    sign(store, other.digest, signer)
    refused(store, other, root.trusted, because=r"by certificate root\.crt: ")


# -- the policy


def test_without_a_policy_that_asks_for_it_nothing_is_looked_at(store: LocalStore) -> None:
    require_signed(store, ["a" * 64], Policy())


def test_the_policy_asks_for_every_artifact_and_names_each_that_lacks_it(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    signer, trusted = keys.pair("team")
    policy = Policy(require_signature=True, trusted=(trusted,))
    report, other = committed(store, b"report"), committed(store, b"other")
    sign(store, artifact.digest, signer)
    with pytest.raises(
        SignatureRefused,
        match=rf"artifact {report.short} is not signed; artifact {other.short} is not signed",
    ) as caught:
        require_signed(store, [artifact.digest, report.digest, other.digest], policy)
    assert artifact.short not in str(caught.value)
    for one in (report, other):
        sign(store, one.digest, signer)
    require_signed(store, [artifact.digest, report.digest, other.digest], policy)


def test_an_artifact_that_is_not_there_is_neither_signed_nor_checked(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    signer, trusted = keys.pair("team")
    for act in (lambda: sign(store, "a" * 64, signer), lambda: check(store, "a" * 64, [trusted])):
        with pytest.raises(ArtifactMissing):
            act()


def test_a_trusted_key_that_cannot_be_read_is_an_error_and_not_a_refusal(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    signer, trusted = keys.pair("team")
    sign(store, artifact.digest, signer)
    for path, message in (
        (keys.folder / "gone.pub", "cannot be read: No such file"),
        (keys.write("text.pub", b"hello"), "is not a public key"),
        (signer.private_key, "is not a public key"),
        (
            keys.write("rsa.pub", public_pem(rsa.generate_private_key(65537, 2048))),
            "is not a public key on an elliptic curve",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            check(store, artifact.digest, [trusted, TrustedKey(type="key", public_key=path)])
    with pytest.raises(ConfigError, match="is not a certificate"):
        check(
            store,
            artifact.digest,
            [TrustedCertificate(type="certificate", certificate=trusted.public_key)],
        )


def test_a_key_that_cannot_sign_says_why_and_is_not_quoted(
    store: LocalStore, artifact: ModelArtifact, keys: Keys
) -> None:
    root = keys.authority()
    locked = keys.write(
        "locked.pem", private_pem(ec.generate_private_key(ec.SECP256R1()), PASSWORD)
    )
    other_curve = keys.write("k1.pem", private_pem(ec.generate_private_key(ec.SECP256K1())))
    good, stranger = root.signer("bot"), root.signer("stranger")
    bad: list[tuple[SigningKey | SigningCertificate, str]] = [
        (
            SigningKey(
                type="key",
                private_key=keys.write(
                    "rsa.pem", private_pem(rsa.generate_private_key(65537, 2048))
                ),
            ),
            "another kind than elliptic",
        ),
        (SigningKey(type="key", private_key=other_curve), "another kind than elliptic"),
        (
            SigningKey(type="key", private_key=keys.write("text.pem", b"secret words")),
            "is not a private key",
        ),
        (SigningKey(type="key", private_key=keys.folder / "gone.pem"), "cannot be read"),
        (good.model_copy(update={"private_key": locked}), "takes a certificate's key only without"),
        (
            good.model_copy(update={"certificate": stranger.certificate}),
            "is the certificate of another key",
        ),
        (good.model_copy(update={"certificate": good.private_key}), "is not a certificate"),
        (good.model_copy(update={"chain": (keys.folder / "gone.crt",)}), "cannot be read"),
    ]
    for signer, message in bad:
        with pytest.raises(ConfigError, match=message) as caught:
            sign(store, artifact.digest, signer)
        assert "secret words" not in repr(caught.value) and caught.value.__cause__ is None
    assert signatures(store, artifact.digest) == []
