"""Where a store keeps the signatures of its artifacts, and their way from one store to another.

    signatures/<digest of the artifact>/<sha256 of the signature file>.json

Who has signed, and whether a signature holds, is the business of `artifacts.registry.signing`.
"""

from __future__ import annotations

from artifacts.store.protocol import Store

SIGNATURES = "signatures/"


def signatures_of(digest: str) -> str:
    """What the keys of an artifact's signatures start with; the rest is the sha256 of the signature
    file."""
    return f"{SIGNATURES}{digest}/"


def subject_of(key: str) -> str:
    """The digest of the artifact that the signature of that key is about."""
    return key.removeprefix(SIGNATURES).split("/")[0]


def carry_signatures(source: Store, target: Store, digest: str) -> None:
    """Copy the signatures of an artifact that both stores have."""
    keys = source.objects.keys(signatures_of(digest))
    if not keys:
        return
    there = set(target.objects.keys(signatures_of(digest)))
    for key in keys:
        found = source.objects.get(key)
        if key not in there and found is not None:
            target.objects.put(key, found[0])  # its name is its hash
