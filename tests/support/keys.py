"""Key pairs and certificate authorities as files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from configs.policy import SigningCertificate, SigningKey, TrustedCertificate, TrustedKey

NOW = datetime.now(UTC)
TWO_DAYS = timedelta(days=2)


def private_pem(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: str | None = None
) -> bytes:
    how = (
        serialization.BestAvailableEncryption(password.encode())
        if password
        else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def public_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


class Keys:
    """Key pairs and certificates as files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, data: bytes) -> Path:
        (self.folder / name).write_bytes(data)
        return self.folder / name

    def pair(
        self, name: str, curve: ec.EllipticCurve | None = None, password: str | None = None
    ) -> tuple[SigningKey, TrustedKey]:
        key = ec.generate_private_key(curve or ec.SECP256R1())
        private = self.write(f"{name}.pem", private_pem(key, password))
        return (
            SigningKey(
                type="key", private_key=private, password_env="KEY_PASSWORD" if password else None
            ),
            TrustedKey(type="key", public_key=self.write(f"{name}.pub", public_pem(key))),
        )

    def authority(
        self,
        name: str = "root",
        above: Authority | None = None,
        *,
        until: datetime = NOW + TWO_DAYS,
    ) -> Authority:
        return Authority(self, name, above, until)


class Authority:
    """A certificate authority: a root, or one below another."""

    def __init__(self, keys: Keys, name: str, above: Authority | None, until: datetime) -> None:
        self.keys, self.name, self.key = keys, name, ec.generate_private_key(ec.SECP256R1())
        self.certificate = (above or self).certify(name, self.key, authority=True, until=until)
        self.path = keys.write(
            f"{name}.crt", self.certificate.public_bytes(serialization.Encoding.PEM)
        )

    @property
    def trusted(self) -> TrustedCertificate:
        return TrustedCertificate(type="certificate", certificate=self.path)

    def certify(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        *,
        authority: bool = False,
        since: datetime = NOW - TWO_DAYS,
        until: datetime = NOW + TWO_DAYS,
        may_sign: bool = True,
    ) -> x509.Certificate:
        subject, issuer = (
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)])
            for one in (name, self.name)
        )
        usage = x509.KeyUsage(
            digital_signature=may_sign,
            key_cert_sign=authority,
            crl_sign=authority,
            content_commitment=False,
            key_encipherment=not may_sign,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(since)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def signer(
        self, name: str = "bot", chain: tuple[Path, ...] = (), **how: Any
    ) -> SigningCertificate:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.certify(name, key, **how).public_bytes(serialization.Encoding.PEM)
        return SigningCertificate(
            type="certificate",
            private_key=self.keys.write(f"{name}.key", private_pem(key)),
            certificate=self.keys.write(f"{name}.crt", certificate),
            chain=chain,
        )
