"""Who serves what of a store: an announcement by each endpoint, on whatever machine, so that a
collection anywhere spares what it serves.

    serving/<machine>/<endpoint>/<digest>.json

It is written before a server starts and removed after it has stopped; in between there may be two,
for a server that is being replaced. A machine that is gone for good leaves its announcements
behind: somebody who knows that has to say so (`lmflows registry gc --forget`).
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import Field, ValidationError

from artifacts.records.record import Record
from artifacts.store.files import write_atomic
from artifacts.store.protocol import Store
from configs import paths
from configs.errors import ArtifactDamaged, ConfigError

PREFIX = "serving/"


class Serving(Record):
    """One endpoint and the artifact that it serves."""

    machine: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    endpoint: str
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    since: datetime

    @property
    def name(self) -> str:
        """MACHINE/ENDPOINT."""
        return f"{self.machine}/{self.endpoint}"

    @property
    def key(self) -> str:
        """Where a store keeps the announcement."""
        return f"{PREFIX}{self.name}/{self.digest}.json"


def this_machine() -> str:
    """The name of this machine, or rather of its home folder: the host's name when it was first
    asked for, and a few digits.

    It is kept in the home folder: a container that comes back with the same volume has another host
    name.
    """
    kept = paths.home() / "machine"
    if not kept.exists():
        host = re.sub(r"[^A-Za-z0-9._-]|^[^A-Za-z0-9]+", "", socket.gethostname()) or "host"
        # the same for two that ask at once
        digits = hashlib.sha256(str(paths.home().resolve()).encode()).hexdigest()[:6]
        write_atomic(kept, f"{host}-{digits}".encode())
    return kept.read_text().strip()


def announce(store: Store, endpoint: str, digest: str) -> None:
    """Say that this machine is about to serve an artifact of the store."""
    serving = Serving(
        machine=this_machine(), endpoint=endpoint, digest=digest, since=datetime.now(UTC)
    )
    if store.objects.get(serving.key) is None:
        store.objects.put(serving.key, serving.model_dump_json().encode())


def withdraw(store: Store, endpoint: str, *, but: str | None = None) -> None:
    """Take back what this machine has announced for an endpoint, except the artifact that it serves
    now."""
    for key in store.objects.keys(f"{PREFIX}{this_machine()}/{endpoint}/"):
        if not key.endswith(f"/{but}.json"):
            store.objects.delete(key)


def everywhere(store: Store) -> list[Serving]:
    """All endpoints that have announced themselves, on any machine.

    Raises:
        ArtifactDamaged: an announcement cannot be read: what it needs cannot be known.
    """
    found = []
    for key in store.objects.keys(PREFIX):
        data = store.objects.get(key)
        if data is None:
            continue  # withdrawn meanwhile
        try:
            serving = Serving.model_validate_json(data[0])
        except ValidationError as error:
            raise ArtifactDamaged(
                f"the announcement of an endpoint cannot be read ({error.errors()[0]['msg']})",
                where=f"{key} in {store.location}",
                hint="remove it if nothing serves this artifact, else deploy that endpoint again",
            ) from None
        if serving.key != key:
            raise ArtifactDamaged(
                "the announcement of an endpoint is another one's",
                where=f"{key} in {store.location}",
                hint="remove it",
            )
        found.append(serving)
    return found


def named(store: Store, names: Sequence[str]) -> list[Serving]:
    """The announcements of these endpoints, each MACHINE/ENDPOINT.

    Raises:
        ConfigError: there is none of that name.
    """
    found = everywhere(store) if names else []
    known = {serving.name for serving in found}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"no endpoint {name!r} serves anything of {store.location}",
                where="endpoints",
                hint=f"it is one of {', '.join(sorted(known)) or 'none'}",
            )
    return [serving for serving in found if serving.name in names]
