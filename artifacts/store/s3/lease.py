"""Who collects garbage in an S3 store, and until when: one object, taken, renewed and released by
conditional writes."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from artifacts.store.s3.objects import S3Objects
from configs.callbacks import Log
from configs.errors import LmflowsError, StaleRef, StoreBusy

LEASE_KEY = "gc.json"
# of a collector that has died on another machine; a living one renews it three times in that time
LEASE_SECONDS = 300.0
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Holder:
    """Who has taken a lease, and the Unix time at which it ends."""

    owner: str
    until: float

    @property
    def host(self) -> str:
        return self.owner.partition("/")[0]

    @property
    def is_alive(self) -> bool:
        """Whether the lease still holds: it has not run out, and if it was taken here, its process
        is there."""
        place, _, pid = self.owner.rpartition(":")[0].rpartition(":")
        has_died = place == _place() and pid.isdigit() and not psutil.pid_exists(int(pid))
        return self.until > time.time() and not has_died


class Lease:
    """An object that says who may collect, and until when; taken, renewed and released by
    conditional writes."""

    def __init__(self, objects: S3Objects, where: str) -> None:
        self.objects = objects
        self.where = where
        self.owner = f"{_place()}:{os.getpid()}:{uuid.uuid4().hex}"

    def take(self) -> None:
        """Raises StoreBusy if somebody else has it and it has not expired."""
        found = self.objects.get(LEASE_KEY)
        if found is not None:
            holder = _holder(found[0])
            if holder.is_alive:
                raise self._busy(holder)
        try:
            self._write(None if found is None else found[1])
        except StaleRef:
            found = self.objects.get(LEASE_KEY)
            holder = Holder("somebody", time.time()) if found is None else _holder(found[0])
            raise self._busy(holder) from None

    def renew_until(self, stop: threading.Event) -> None:
        """Keep it while the event is not set."""
        while not stop.wait(LEASE_SECONDS / 3):
            # a server that does not answer now may do so next time; who has taken over is found at
            # the end
            with suppress(LmflowsError):
                version = self._own_version()
                if version is not None:
                    self._write(version)

    def release(self) -> None:
        """Let it expire at once; somebody else's is left alone."""
        with suppress(LmflowsError):
            version = self._own_version()
            if version is not None:
                self._write(version, ended=True)

    def _own_version(self) -> str | None:
        """The version of the object, if the lease is ours."""
        found = self.objects.get(LEASE_KEY)
        if found is None or _holder(found[0]).owner != self.owner:
            return None
        return found[1]

    def _write(self, seen: str | None, *, ended: bool = False) -> None:
        data = {
            "owner": self.owner,
            "until": time.time() + (0.0 if ended else LEASE_SECONDS),
            "id": uuid.uuid4().hex,
        }
        self.objects.swap(LEASE_KEY, json.dumps(data).encode(), seen=seen)

    def _busy(self, holder: Holder) -> StoreBusy:
        end = time.strftime("%H:%M:%S", time.localtime(holder.until))
        return StoreBusy(
            f"{holder.owner} is collecting garbage",
            where=self.where,
            hint=f"wait until it is done; if it has died, its lease ends {end}",
        )


def look(objects: S3Objects) -> str | None:
    """A word for the state of the lease; None while somebody collects. If it is the same word
    later, nobody has collected since."""
    found = objects.get(LEASE_KEY)
    if found is None:
        return "never"
    return None if _holder(found[0]).is_alive else found[1]


def wait(objects: S3Objects, log: Log) -> str | None:
    """`look` again, when whoever collects now has ended; None if somebody else began meanwhile, who
    sees what is there now. `log` hears for whom it waits."""
    first: str | None = None
    while True:
        state = look(objects)
        if state is not None:
            return state if first is None else None
        found = objects.get(LEASE_KEY)
        if found is None:
            return None
        holder = _holder(found[0])
        if first is not None and holder.owner != first:
            return None
        first = holder.owner
        log(f"waiting: {holder.host} is collecting garbage")
        time.sleep(POLL_SECONDS)


def _place() -> str:
    """This machine, as far as process ids mean the same: two containers of one host differ, and two
    machines of one name."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"


def _holder(data: bytes) -> Holder:
    """Who holds a lease and until when; one that cannot be read has expired."""
    try:
        lease = json.loads(data)
        return Holder(str(lease["owner"]), float(lease["until"]))
    except (ValueError, KeyError, TypeError):
        return Holder("somebody", 0.0)
