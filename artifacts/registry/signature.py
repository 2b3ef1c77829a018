"""One signature file: made and verified by the library of OpenSSF model signing.

What is signed is the manifest: the statement's subject is the artifact's digest, which covers
parents and recipe, and its resources are the manifest's files with their hashes. So weights are
never read again, and `model_signing verify` accepts the artifact's folder with the signature beside
it. Knows nothing of stores.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.manifest import Manifest
from artifacts.registry.keys import name_of, password_of, read_certificates
from configs.errors import ConfigError
from configs.policy import Signer, SigningCertificate, Trusted, TrustedCertificate

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from model_signing import manifest as oms


def statement_of(manifest: Manifest) -> oms.Manifest:
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


def make_signature(
    statement: oms.Manifest, signer: Signer, private_key: EllipticCurvePrivateKey
) -> bytes:
    """Sign a statement; returns the signature file.

    Raises:
        ConfigError: the certificate is of another key, or cannot be used.
    """
    from model_signing import signing

    config = signing.Config().set_hashing_config(_known(statement))  # type: ignore[no-untyped-call]
    if isinstance(signer, SigningCertificate):
        certificates = [read_certificates(path) for path in (signer.certificate, *signer.chain)]
        if certificates[0][0].public_key() != private_key.public_key():
            raise ConfigError(
                "is the certificate of another key",
                where=str(signer.certificate),
                hint=f"give the one of {signer.private_key}",
            )
        config.use_certificate_signer(
            private_key=signer.private_key,
            signing_certificate=signer.certificate,
            # the library takes no empty chain; a link that stands twice does no harm
            certificate_chain=signer.chain or (signer.certificate,),
        )
    else:
        # the library hands the password on to `cryptography`, which takes bytes alone, whatever the
        # annotation says
        password: Any = password_of(signer)
        config.use_elliptic_key_signer(private_key=signer.private_key, password=password)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signature.json"
        config.sign(folder, path)
        return path.read_bytes()


def verify_signature(data: bytes, wanted: oms.Manifest, trusted: Trusted) -> str:
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
        path = Path(folder) / "signature.json"
        path.write_bytes(data)
        # the signature holds, and its resources are the manifest's files
        config.verify(folder, path)
        bundle = Signature.read(path).bundle
    envelope = bundle.dsse_envelope
    named = json.loads(envelope.payload)["subject"][0]["name"] if envelope else None
    # the library compares files alone: parents and recipe are in the digest
    if named != wanted.model_name:
        raise ValueError(f"it is for artifact {str(named)[:12]}, which has the same files")
    if not isinstance(trusted, TrustedCertificate):
        return name_of(trusted)
    chain = bundle.verification_material.x509_certificate_chain
    return _certified([link.raw_bytes for link in chain.certificates] if chain else [], trusted)


def is_same_signature(data: bytes, new: bytes, private_key: EllipticCurvePrivateKey) -> bool:
    """Whether a signature says what the new one says, and is by the same key."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    # which hash goes with a curve: the library's choice
    from model_signing._signing.sign_ec_key import get_ec_key_hash

    try:
        old = json.loads(data)
        fresh = json.loads(new)
        envelope = old["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"])
        wanted = base64.b64decode(fresh["dsseEnvelope"]["payload"])
        if old["verificationMaterial"] != fresh["verificationMaterial"]:
            return False
        if json.loads(payload) != json.loads(wanted):
            return False
        kind = envelope["payloadType"].encode()
        public_key = private_key.public_key()
        public_key.verify(
            base64.b64decode(envelope["signatures"][0]["sig"]),
            b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload),
            ECDSA(get_ec_key_hash(public_key)),
        )
        return True
    except Exception:  # whatever bytes may lie in a store: see `artifacts.registry.signing.check`
        return False


def _known(statement: oms.Manifest) -> Any:
    """A hashing configuration that knows the hashes already."""
    from model_signing import hashing

    class Known(hashing.Config):
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> oms.Manifest:
            return statement

    return Known()  # type: ignore[no-untyped-call]


def _certified(material: Sequence[bytes], trusted: TrustedCertificate) -> str:
    """Who has signed, by certificate, after what the library leaves out: it looks whether the chain
    held when its first link began."""
    from cryptography import x509
    from OpenSSL import crypto

    own, *chain = [x509.load_der_x509_certificate(link) for link in material]
    store = crypto.X509Store()
    for root in read_certificates(trusted.certificate):
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
    return f"{own.subject.rfc4514_string()}, certified by {name_of(trusted)}"
