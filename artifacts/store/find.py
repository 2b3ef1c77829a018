"""The artifact of a store that somebody names by the first digits of its digest."""

from __future__ import annotations

import re
from collections.abc import Iterable

from artifacts.store.protocol import Store
from configs.errors import ArtifactMissing


def match(
    prefix: str, known: Iterable[str], *, where: str, hint: str = "`lmflows ls` shows what there is"
) -> str:
    """The one digest that starts with `prefix` (at least 6 hex digits).

    Raises:
        ArtifactMissing: none does, or more than one.
    """
    digits = prefix.removeprefix("sha256:")
    if len(digits) < 6:
        raise ArtifactMissing(
            f"{prefix!r} is too short to name an artifact",
            where=where,
            hint="give at least 6 digits",
        )
    found = {digest for digest in known if digest.startswith(digits)}
    if len(found) != 1:
        what = f"{len(found)} artifacts start with" if found else "no artifact starts with"
        raise ArtifactMissing(f"{what} {prefix!r}", where=where, hint=hint)
    return found.pop()


def find(store: Store, digest: str) -> str:
    """The one artifact of a store that starts with these digits.

    Raises:
        ArtifactMissing: there is none, or more than one.
    """
    digits = digest.removeprefix("sha256:")
    if re.fullmatch("[0-9a-f]{64}", digits) and store.has(digits):
        return digits  # a bucket need not be listed for it
    return match(
        digest,
        store.digests(),
        where=store.location,
        hint=(
            "`lmflows registry ls --artifacts` shows what there is; `lmflows registry push` brings"
            " something in"
        ),
    )
