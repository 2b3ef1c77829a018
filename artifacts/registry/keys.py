"""The keys and certificates that a policy names, read from their PEM files. No message quotes
one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import ConfigError
from configs.policy import Policy, Signer, SigningCertificate, Trusted, TrustedCertificate

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

CURVES = ("secp256r1", "secp384r1", "secp521r1")
PEM_KEY = (
    "give a PEM file with a key on curve P-256, P-384 or P-521: openssl ecparam -name prime256v1"
    " -genkey -noout -out key.pem"
)


def require_keys(policy: Policy) -> None:
    """Raise ConfigError if a key or certificate that the policy names cannot be used: better now
    than when there is something to sign."""
    if policy.sign is not None:
        read_private_key(policy.sign)
    for trusted in policy.trusted if policy.require_signature else ():
        require_usable(trusted)


def require_usable(trusted: Trusted) -> None:
    """Raise ConfigError for a file that holds no key: a policy with a mistake refuses everything,
    and must say why."""
    if isinstance(trusted, TrustedCertificate):
        read_certificates(trusted.certificate)
        return
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read(trusted.public_key, "policy: trusted")
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


def password_of(signer: Signer) -> bytes | None:
    """The password of a signer's key; None if it has none.

    Raises:
        ConfigError: the environment variable that should have it is empty.
    """
    if isinstance(signer, SigningCertificate) or signer.password_env is None:
        return None
    password = os.environ.get(signer.password_env)
    if not password:
        raise ConfigError(
            f"the environment variable {signer.password_env} is empty",
            where="policy: sign.password_env",
            hint=f"export {signer.password_env}=PASSWORD",
        )
    return password.encode()


def read_private_key(signer: Signer) -> EllipticCurvePrivateKey:
    """The key that somebody signs with.

    Raises:
        ConfigError: it or its password cannot be used.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = signer.private_key
    password = password_of(signer)
    data = _read(path, "policy: sign.private_key")
    try:
        key = load_pem_private_key(data, password)
    except TypeError:  # a password for a key that has none, or the other way round
        raise _password_problem(signer, is_encrypted=password is None) from None
    except Exception:  # cryptography has a dozen; none may quote the key
        raise ConfigError(
            "is not a private key, or the password is wrong", where=str(path), hint=PEM_KEY
        ) from None
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise ConfigError(
            "is a key of another kind than elliptic curve P-256, P-384 or P-521",
            where=str(path),
            hint=PEM_KEY,
        )
    return key


def _password_problem(signer: Signer, *, is_encrypted: bool) -> ConfigError:
    """The error for a key whose password is missing, or that has none."""
    where = str(signer.private_key)
    if not is_encrypted:
        return ConfigError("has no password", where=where, hint="remove sign.password_env")
    if isinstance(signer, SigningCertificate):
        hint = (
            "the signing library takes a certificate's key only without: openssl ec -in key.pem"
            " -out plain.pem"
        )
    else:
        hint = "name an environment variable with its password in sign.password_env"
    return ConfigError("has a password", where=where, hint=hint)


def read_certificates(path: Path) -> list[Certificate]:
    """The certificates of a PEM file.

    Raises:
        ConfigError: it has none, or cannot be read.
    """
    from cryptography.x509 import load_pem_x509_certificates

    data = _read(path, "policy")
    try:
        return load_pem_x509_certificates(data)
    except ValueError:
        raise ConfigError("is not a certificate", where=str(path), hint="give a PEM file") from None


def name_of(trusted: Trusted) -> str:
    """A trusted key or certificate, in words."""
    if isinstance(trusted, TrustedCertificate):
        return f"certificate {trusted.certificate.name}"
    return f"key {trusted.public_key.name}"


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}",
            where=where,
            hint="paths in a policy are relative to its file",
        ) from None
