"""Signatures of artifacts, in the format and by the library of OpenSSF model signing; all offline.

What is signed is the manifest: the statement's subject is the artifact's digest, which covers
parents and recipe, and its resources are the manifest's files with their hashes. So weights are
never read again, and `model_signing verify` accepts the artifact's folder with the signature beside
it. A verdict is signed as what holds it, the report artifact.

In a store: `signatures/<digest>/<sha256 of the signature file>.json`, for any number of signers. A
signature carries no time that anybody vouches for, so one by a certificate holds as long as the
certificate does.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.manifest import Manifest
from artifacts.store.protocol import Store, signatures_of
from configs.errors import ConfigError, LmflowsError, SignatureRefused
from configs.policy import Policy, Signer, SigningCertificate, Trusted, TrustedCertificate

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate
    from model_signing import manifest as oms

MAX_BYTES = 128 << 20  # of a signature; one of 100 000 files has 40 MB
PEM_KEY = (
    "give a PEM file with a key on curve P-256, P-384 or P-521: openssl ecparam -name prime256v1"
    " -genkey -noout -out key.pem"
)


@dataclass(frozen=True)
class Signed:
    """A signature that holds: by whom, and under which key of the store it lies."""

    who: str
    key: str


def sign(store: Store, digest: str, signer: Signer) -> str:
    """Sign an artifact; returns the signature's key in the store. A signature of this signer that
    is there already is enough.

    Raises:
        ArtifactMissing: the store has no such artifact.
        ConfigError: key, password or certificate cannot be used.
    """
    wanted = _statement(store.manifest(digest))
    private_key = _private_key(signer)
    data = _sign(wanted, signer, private_key)
    for key in _keys(store, digest):
        if _is_ours(_read(store, key), data, private_key):
            return key
    key = f"{signatures_of(digest)}{hashlib.sha256(data).hexdigest()}.json"
    store.objects.put(key, data)
    return key


def check(store: Store, digest: str, trusted: Sequence[Trusted]) -> Signed:
    """The first signature of an artifact that somebody trusted has made.

    Raises:
        ArtifactMissing: the store has no such artifact.
        SignatureRefused: there is none; says what was found, and why each does not hold.
        ConfigError: the file of a trusted key or certificate cannot be used.
    """
    wanted = _statement(store.manifest(digest))
    for one in trusted:
        _require_usable(one)
    problems = []
    for key in _keys(store, digest):
        data = _read(store, key)
        for one in trusted:
            try:
                return Signed(_verify(data, wanted, one), key)
            except Exception as error:
                # whatever bytes may lie in a store, and whatever they make three libraries raise
                problems.append(f"{Path(key).stem[:12]} by {_name(one)}: {_why(error)}")
    found = f"no trusted signature ({'; '.join(problems)})" if problems else "is not signed"
    raise SignatureRefused(
        found,
        where=f"artifact {digest[:12]}",
        hint=(
            "have it signed by somebody whom the policy trusts, or name in its `trusted` who has"
            " signed it"
        ),
    )


def require_signed(store: Store, digests: Sequence[str], policy: Policy) -> None:
    """Do nothing if the policy asks for no signatures, or if each artifact has a trusted one.

    Raises:
        SignatureRefused: one line for each that has none.
        ArtifactMissing, ConfigError: as `check`.
    """
    problems = []
    for digest in digests if policy.require_signature else ():
        try:
            check(store, digest, policy.trusted)
        except SignatureRefused as error:
            problems.append(error)
    if problems:
        raise SignatureRefused(
            "; ".join(f"{error.where} {error.message}" for error in problems),
            where="policy require_signature",
            hint=problems[0].hint,
        )


def require_keys(policy: Policy) -> None:
    """Raise ConfigError if a key or certificate that the policy names cannot be used: better now
    than when there is something to sign."""
    if policy.sign is not None:
        _private_key(policy.sign)
    for trusted in policy.trusted if policy.require_signature else ():
        _require_usable(trusted)


def signatures(store: Store, digest: str) -> list[bytes]:
    """Every signature file of an artifact, whoever made it: what `model_signing verify --signature`
    takes."""
    return [data for key in _keys(store, digest) if (data := _read(store, key))]


def _keys(store: Store, digest: str) -> list[str]:
    return store.objects.keys(signatures_of(digest))


def _read(store: Store, key: str) -> bytes:
    """A signature file; empty if it is gone in the meantime, or too large to be one."""
    found = store.objects.get(key)
    return found[0] if found and len(found[0]) <= MAX_BYTES else b""


# -- the library


def _statement(manifest: Manifest) -> oms.Manifest:
    """What the library calls a manifest: the artifact's digest as the model's name, and its
    files."""
    from model_signing import manifest as oms

    # no public module has it, and an item is made of it
    from model_signing._hashing.hashing import Digest

    # as trees may have them
    method = oms.SerializationType.from_args(
        {"method": "files", "hash_type": "sha256", "allow_symlinks": True}
    )
    items = [
        method.new_item(entry.path, Digest("sha256", bytes.fromhex(entry.sha256)))
        for entry in manifest.files
    ]
    return oms.Manifest(manifest.digest, items, method)


def _known(statement: oms.Manifest) -> Any:
    """A hashing configuration that knows the hashes already."""
    from model_signing import hashing

    class Known(hashing.Config):
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> oms.Manifest:
            return statement

    return Known()  # type: ignore[no-untyped-call]


def _sign(statement: oms.Manifest, signer: Signer, private_key: EllipticCurvePrivateKey) -> bytes:
    from model_signing import signing

    config = signing.Config().set_hashing_config(_known(statement))  # type: ignore[no-untyped-call]
    if isinstance(signer, SigningCertificate):
        first, *_ = [_certificates(path)[0] for path in (signer.certificate, *signer.chain)]
        if first.public_key() != private_key.public_key():
            raise ConfigError(
                "is the certificate of another key",
                where=str(signer.certificate),
                hint=f"give the one of {signer.private_key}",
            )
        # the library takes no empty chain; a link that stands twice does no harm
        chain = signer.chain or (signer.certificate,)
        config.use_certificate_signer(
            private_key=signer.private_key,
            signing_certificate=signer.certificate,
            certificate_chain=chain,
        )
    else:
        # the library hands the password on to `cryptography`, which takes bytes alone, whatever the
        # annotation says
        config.use_elliptic_key_signer(private_key=signer.private_key, password=_password(signer))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        config.sign(folder, path := Path(folder) / "signature.json")
        return path.read_bytes()


def _verify(data: bytes, wanted: oms.Manifest, trusted: Trusted) -> str:
    """Who has signed; raises anything at all if the signature does not hold."""
    from model_signing import verifying

    # a second reader might see another statement in the same file
    from model_signing._signing.sign_sigstore_pb import Signature

    config = verifying.Config().set_hashing_config(_known(wanted))  # type: ignore[no-untyped-call]
    if isinstance(trusted, TrustedCertificate):
        config.use_certificate_verifier(certificate_chain=[trusted.certificate])
    else:
        config.use_elliptic_key_verifier(public_key=trusted.public_key)
    # it prints warnings
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        (path := Path(folder) / "signature.json").write_bytes(data)
        # the signature holds, and its resources are the manifest's files
        config.verify(folder, path)
        bundle = Signature.read(path).bundle
    envelope, chain = bundle.dsse_envelope, bundle.verification_material.x509_certificate_chain
    named = json.loads(envelope.payload)["subject"][0]["name"] if envelope else None
    # the library compares files alone: parents and recipe are in the digest
    if named != wanted.model_name:
        raise ValueError(f"it is for artifact {str(named)[:12]}, which has the same files")
    if not isinstance(trusted, TrustedCertificate):
        return _name(trusted)
    return _certified([link.raw_bytes for link in chain.certificates] if chain else [], trusted)


def _certified(material: Sequence[bytes], trusted: TrustedCertificate) -> str:
    """Who has signed, by certificate, after what the library leaves out: it looks whether the chain
    held when its first link began."""
    from cryptography import x509
    from OpenSSL import crypto

    own, *chain = [x509.load_der_x509_certificate(link) for link in material]
    store = crypto.X509Store()
    for root in _certificates(trusted.certificate):
        store.add_cert(crypto.X509.from_cryptography(root))
    crypto.X509StoreContext(
        store,
        crypto.X509.from_cryptography(own),
        [crypto.X509.from_cryptography(link) for link in chain],
    ).verify_certificate()
    names = [
        str(name.value) for name in own.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    ]
    if trusted.names and (len(names) != 1 or names[0] not in trusted.names):
        raise ValueError(
            f"certified for {', '.join(names) or 'nobody'}, and only {', '.join(trusted.names)} may"
            " sign"
        )
    return f"{own.subject.rfc4514_string()}, certified by {_name(trusted)}"


def _is_ours(data: bytes, new: bytes, private_key: EllipticCurvePrivateKey) -> bool:
    """Whether a signature says what the new one says, and is by the same key."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    # which hash goes with a curve: the library's choice
    from model_signing._signing.sign_ec_key import get_ec_key_hash

    try:
        old, fresh = json.loads(data), json.loads(new)
        payload, wanted = (base64.b64decode(one["dsseEnvelope"]["payload"]) for one in (old, fresh))
        if old["verificationMaterial"] != fresh["verificationMaterial"] or json.loads(
            payload
        ) != json.loads(wanted):
            return False
        public_key = private_key.public_key()
        signed = b"DSSEv1 %d %s %d %s" % (
            len(kind := old["dsseEnvelope"]["payloadType"].encode()),
            kind,
            len(payload),
            payload,
        )
        public_key.verify(
            base64.b64decode(old["dsseEnvelope"]["signatures"][0]["sig"]),
            signed,
            ECDSA(get_ec_key_hash(public_key)),
        )
        return True
    except Exception:  # see `check`
        return False


# -- keys


def _password(signer: Signer) -> bytes | None:
    if isinstance(signer, SigningCertificate) or signer.password_env is None:
        return None
    if not (password := os.environ.get(signer.password_env)):
        raise ConfigError(
            f"the environment variable {signer.password_env} is empty",
            where="policy: sign.password_env",
            hint=f"export {signer.password_env}=PASSWORD",
        )
    return password.encode()


def _private_key(signer: Signer) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path, password = signer.private_key, _password(signer)
    data = _bytes(path, "policy: sign.private_key")
    try:
        key = load_pem_private_key(data, password)
    except TypeError:  # a password for a key that has none, or the other way round
        encrypted = password is None
        able = "name an environment variable with its password in sign.password_env"
        if isinstance(signer, SigningCertificate):
            able = (
                "the signing library takes a certificate's key only without: openssl ec -in key.pem"
                " -out plain.pem"
            )
        raise ConfigError(
            "has a password" if encrypted else "has no password",
            where=str(path),
            hint=able if encrypted else "remove sign.password_env",
        ) from None
    except Exception:  # cryptography has a dozen; none may quote the key
        raise ConfigError(
            "is not a private key, or the password is wrong", where=str(path), hint=PEM_KEY
        ) from None
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in (
        "secp256r1",
        "secp384r1",
        "secp521r1",
    ):
        raise ConfigError(
            "is a key of another kind than elliptic curve P-256, P-384 or P-521",
            where=str(path),
            hint=PEM_KEY,
        )
    return key


def _require_usable(trusted: Trusted) -> None:
    """Raise ConfigError for a file that holds no key: a policy with a mistake refuses everything,
    and must say why."""
    if isinstance(trusted, TrustedCertificate):
        _certificates(trusted.certificate)
        return
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _bytes(trusted.public_key, "policy: trusted")
    try:
        key = load_pem_public_key(data)
    except Exception:
        key = None
    if not isinstance(key, EllipticCurvePublicKey):
        raise ConfigError(
            "is not a public key on an elliptic curve",
            where=str(trusted.public_key),
            hint="openssl ec -in key.pem -pubout -out key.pub makes it from the private key",
        )


def _certificates(path: Path) -> list[Certificate]:
    from cryptography.x509 import load_pem_x509_certificates

    data = _bytes(path, "policy")
    try:
        return load_pem_x509_certificates(data)
    except ValueError:
        raise ConfigError("is not a certificate", where=str(path), hint="give a PEM file") from None


def _bytes(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}",
            where=where,
            hint="paths in a policy are relative to its file",
        ) from None


def _name(trusted: Trusted) -> str:
    return (
        f"certificate {trusted.certificate.name}"
        if isinstance(trusted, TrustedCertificate)
        else f"key {trusted.public_key.name}"
    )


def _why(error: Exception) -> str:
    """One short line of an error of any library."""
    from cryptography.exceptions import InvalidSignature

    if isinstance(error, LmflowsError):
        return error.message
    if isinstance(error, InvalidSignature):
        return "the signature is not by this key"
    text = " ".join(str(error).split()) or type(error).__name__
    return (
        f"not a signature ({text})"[:160]
        if isinstance(error, KeyError | TypeError | AttributeError | IndexError)
        else text[:300]
    )
