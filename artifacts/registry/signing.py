"""The signatures of a store's artifacts: made with the policy's key, and checked against those whom
it trusts; all offline.

A verdict is signed as what holds it, the report artifact. There may be any number of signers. A
signature carries no time that anybody vouches for, so one by a certificate holds as long as the
certificate does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts.registry.keys import name_of, read_private_key, require_usable
from artifacts.registry.signature import (
    is_same_signature,
    make_signature,
    statement_of,
    verify_signature,
)
from artifacts.store.protocol import Store
from artifacts.store.signatures import signatures_of
from configs.errors import LmflowsError, SignatureRefused
from configs.policy import Policy, Signer, Trusted

MAX_BYTES = 128 << 20  # of a signature; one of 100 000 files has 40 MB


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
    statement = statement_of(store.manifest(digest))
    private_key = read_private_key(signer)
    data = make_signature(statement, signer, private_key)
    for key in _keys(store, digest):
        if is_same_signature(_read(store, key), data, private_key):
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
    statement = statement_of(store.manifest(digest))
    for signer in trusted:
        require_usable(signer)
    problems = []
    for key in _keys(store, digest):
        data = _read(store, key)
        for signer in trusted:
            try:
                return Signed(verify_signature(data, statement, signer), key)
            except Exception as error:
                # whatever bytes may lie in a store, and whatever they make three libraries raise
                problems.append(f"{Path(key).stem[:12]} by {name_of(signer)}: {_why(error)}")
    found = f"no trusted signature ({'; '.join(problems)})" if problems else "is not signed"
    raise SignatureRefused(
        found,
        where=f"artifact {digest[:12]}",
        hint="have it signed by somebody whom the policy trusts, or name in its `trusted` who has"
        " signed it",
    )


def require_signed(store: Store, digests: Sequence[str], policy: Policy) -> None:
    """Do nothing if the policy asks for no signatures, or if each artifact has a trusted one.

    Raises:
        SignatureRefused: one line for each that has none.
        ArtifactMissing, ConfigError: as `check`.
    """
    if not policy.require_signature:
        return
    problems = []
    for digest in digests:
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


def signatures(store: Store, digest: str) -> list[bytes]:
    """Every signature file of an artifact, whoever made it: what `model_signing verify --signature`
    takes."""
    found = [_read(store, key) for key in _keys(store, digest)]
    return [data for data in found if data]


def _keys(store: Store, digest: str) -> list[str]:
    return store.objects.keys(signatures_of(digest))


def _read(store: Store, key: str) -> bytes:
    """A signature file; empty if it is gone in the meantime, or too large to be one."""
    found = store.objects.get(key)
    if found is None or len(found[0]) > MAX_BYTES:
        return b""
    return found[0]


def _why(error: Exception) -> str:
    """One short line of an error of any library."""
    from cryptography.exceptions import InvalidSignature

    if isinstance(error, LmflowsError):
        return error.message
    if isinstance(error, InvalidSignature):
        return "the signature is not by this key"
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError | TypeError | AttributeError | IndexError):
        return f"not a signature ({text})"[:160]
    return text[:300]
