"""Who collects garbage in an S3 store, and until when: one object, taken, renewed and released by
conditional writes."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from artifacts.store.s3.objects import S3Objects
from configs.errors import LmflowsError, StaleRef, StoreBusy

LEASE_KEY = "gc.json"
# of a collector that has died on another machine; a living one renews it three times in that time
LEASE_SECONDS = 300.0
POLL_SECONDS = 1.0


class Lease:
    """An object that says who may collect, and until when; taken, renewed and released by
    conditional writes."""

    def __init__(self, objects: S3Objects, where: str) -> None:
        self.objects, self.where = objects, where
        self.owner = f"{_place()}:{os.getpid()}:{uuid.uuid4().hex}"

    def take(self) -> None:
        """Raises StoreBusy if somebody else has it and it has not expired."""
        found = self.objects.get(LEASE_KEY)
        if found and (holder := _holder(found[0])) and _is_alive(*holder):
            raise self._busy(holder)
        try:
            self._write(found[1] if found else None)
        except StaleRef:
            found = self.objects.get(LEASE_KEY)
            raise self._busy(_holder(found[0]) if found else ("somebody", time.time())) from None

    def renew_until(self, stop: threading.Event) -> None:
        while not stop.wait(LEASE_SECONDS / 3):
            # a server that does not answer now may do so next time; who has taken over is found at
            # the end
            with suppress(LmflowsError):
                if (found := self.objects.get(LEASE_KEY)) and _holder(found[0])[0] == self.owner:
                    self._write(found[1])

    def release(self) -> None:
        """Let it expire at once; somebody else's is left alone."""
        with suppress(LmflowsError):
            if (found := self.objects.get(LEASE_KEY)) and _holder(found[0])[0] == self.owner:
                self._write(found[1], ended=True)

    def _write(self, seen: str | None, *, ended: bool = False) -> None:
        data = {
            "owner": self.owner,
            "until": time.time() + (0.0 if ended else LEASE_SECONDS),
            "id": uuid.uuid4().hex,
        }
        self.objects.swap(LEASE_KEY, json.dumps(data).encode(), seen=seen)

    def _busy(self, holder: tuple[str, float]) -> StoreBusy:
        return StoreBusy(
            f"{holder[0]} is collecting garbage",
            where=self.where,
            hint=(
                "wait until it is done; if it has died, its lease ends"
                f" {time.strftime('%H:%M:%S', time.localtime(holder[1]))}"
            ),
        )


def look(objects: S3Objects) -> str | None:
    """A word for the state of the lease; None while somebody collects. If it is the same word
    later, nobody has collected since."""
    found = objects.get(LEASE_KEY)
    if found is None:
        return "never"
    return None if _is_alive(*_holder(found[0])) else found[1]


def wait(objects: S3Objects, waiting: Callable[[str], None]) -> str | None:
    """`look` again, when whoever collects now has ended; None if somebody else began meanwhile, who
    sees what is there now."""
    first: str | None = None
    while (word := look(objects)) is None and (found := objects.get(LEASE_KEY)):
        owner = _holder(found[0])[0]
        if owner != (first or owner):
            return None
        first = owner
        waiting(owner.partition("/")[0])
        time.sleep(POLL_SECONDS)
    return word if first is None else None


def _place() -> str:
    """This machine, as far as process ids mean the same: two containers of one host differ, and two
    machines of one name."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"


def _is_alive(owner: str, until: float) -> bool:
    """Whether a lease still holds: it has not run out, and if it was taken here, its process is
    there."""
    place, _, rest = owner.rpartition(":")[0].rpartition(":")
    return until > time.time() and not (
        place == _place() and rest.isdigit() and not psutil.pid_exists(int(rest))
    )


def _holder(data: bytes) -> tuple[str, float]:
    """Who holds a lease and until when; one that cannot be read has expired."""
    try:
        lease = json.loads(data)
        return str(lease["owner"]), float(lease["until"])
    except (ValueError, KeyError, TypeError):
        return "somebody", 0.0
