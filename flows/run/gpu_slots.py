"""One run at a time on a GPU: a run holds the slot of each GPU that it uses, and others wait.

A slot is two things. The first is a lock of this host, an abstract Unix socket named by the GPU's
UUID: the kernel gives it to one process, frees it at the moment that process dies, however it dies,
and names the holder to whoever waits. It holds between all users and all home folders of the host,
and needs no file. The second is a Prefect global concurrency limit of 1, `gpu:HOST:UUID`, under a
lease that Prefect renews: it shows in the UI which GPU is busy, and lets somebody be waited for who
has only that (`prefect.concurrency`, a container with that host name and a network of its own),
though for LOST_SECONDS at most.

How a crashed run's slot comes back, tried with Prefect 3.9.1:
- Behind a Prefect server, the server takes back a lease that was not renewed for 60 seconds, in a
  round that it makes every 15.
- Behind the ephemeral server of a run, leases are in that server's memory and die with it, and no
  ephemeral server looks for expired ones: the slot would stay taken for ever. But whoever has the
  lock knows that nobody else of this host is alive with the slot, and all that share that server's
  SQLite file are on this host: it takes the slot at once.
- A server that is restarted forgets its leases, too: after LOST_SECONDS with the lock in hand, the
  slot counts as lost, and is taken.

Not covered: two containers with networks of their own and different host names see neither each
other's lock nor one limit. The slot is only politeness; what lets a step start is free memory by
NVML (`tasks.machine.gpus.require_free`). So trouble with Prefect is told, and never fails a step.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from http import HTTPStatus

import psutil
from httpx import HTTPStatusError
from prefect.client.base import ServerType
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
)
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.logging import get_logger

from configs.callbacks import Log
from tasks.machine.gpus import Gpu

LEASE_SECONDS = 60  # the least that Prefect's server accepts; it is renewed every 45
LOST_SECONDS = 300  # long after the server would have taken the lease back, if it knew it
LOOK_SECONDS = 0.5  # between two tries


@contextmanager
def held(gpus: Sequence[Gpu], *, log: Log) -> Iterator[None]:
    """Hold the slots of these GPUs while the body runs; wait for as long as somebody else has one.

    Slots are taken in the order of their UUIDs, so that two runs that want the same two GPUs cannot
    block each other. Not reentrant: a run that holds a slot and asks for it again waits for itself.
    Without a GPU nothing is asked, of Prefect or of the kernel.

    Args:
        gpus: the GPUs that the body uses.
        log: told once for each thing that is waited for, and of trouble with Prefect, in one
            line.
    """
    in_order = [gpu for _, gpu in sorted({gpu.uuid: gpu for gpu in gpus}.items())]
    if not in_order:
        yield
        return
    with ExitStack() as stack:
        for gpu in in_order:
            stack.enter_context(_lock(gpu, log))
        names = [slot_name(gpu) for gpu in in_order]
        try:
            slot = _take(names, log)
        except Exception as error:
            log(
                f"Prefect gives no slot for {', '.join(map(str, in_order))}, going on without:"
                f" {error}"
            )
        else:
            stack.callback(_give_back, slot)
        yield


def slot_name(gpu: Gpu) -> str:
    """The name of a GPU's global concurrency limit in Prefect."""
    return f"gpu:{socket.gethostname()}:{gpu.uuid}"


@contextmanager
def _lock(gpu: Gpu, log: Log) -> Iterator[None]:
    """The lock of this host.

    A child process does not keep it, but has it from the moment it is forked to the moment it runs
    its own program: a thread that starts one while the lock is given back holds it for some
    milliseconds more. So nobody is told of a wait before the second look.
    """
    address, looks = f"\0lmdeploy-flows gpu {gpu.uuid}", 0
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
            try:
                lock.bind(address)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                lock.listen()  # so that the kernel answers who has it; nobody is ever let in
                yield
                return
        looks += 1
        if looks == 2:
            log(f"{gpu} is in use by {_owner(address)}; waiting for it")
        time.sleep(LOOK_SECONDS)


def _owner(address: str) -> str:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller,
        suppress(OSError, psutil.Error),
    ):
        caller.setblocking(False)
        caller.connect(address)
        size = struct.calcsize("3i")
        peer = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid, _, _ = struct.unpack("3i", peer)
        if pid == os.getpid():
            return "another step of this run"
        if pid:  # 0: a process of another container
            process = psutil.Process(pid)
            return f"pid {pid} of {process.username()} ({' '.join(process.cmdline())[-80:]})"
    return "another run"


def _take(names: list[str], log: Log) -> AbstractContextManager[None]:
    """Prefect's slots, entered. Call it with the locks in hand.

    It looks itself and does not let Prefect wait, which after long steps would try only every half
    a minute.
    """
    began = time.monotonic()
    said = False
    with get_client(sync_client=True) as client:
        patience = 0 if client.server_type is ServerType.EPHEMERAL else LOST_SECONDS
        while True:
            limits = [_limit(client, name) for name in names]
            full = [item for item in limits if item.active and item.active_slots >= item.limit]
            slot = None if full else _entered(names)
            if slot is not None:
                return slot
            lost = [item.name for item in full if item.active_slots]
            if lost and time.monotonic() - began >= patience:
                for name in lost:
                    client.update_global_concurrency_limit(
                        name, GlobalConcurrencyLimitUpdate(active_slots=0)
                    )
                continue
            if full and not said:
                log(
                    f"Prefect's slot {' and '.join(item.name for item in full)} is taken; waiting"
                    f" for it (that of a killed run comes back after about {LEASE_SECONDS} s)"
                )
                said = True
            time.sleep(LOOK_SECONDS)


def _limit(client: SyncPrefectClient, name: str) -> GlobalConcurrencyLimitResponse:
    """The limit as it is now, created if it is missing. Whoever has changed it (`prefect gcl
    update`) keeps that."""
    try:
        return client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        with suppress(ObjectAlreadyExists):  # somebody else was faster
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        return client.read_global_concurrency_limit_by_name(name)


def _entered(names: list[str]) -> AbstractContextManager[None] | None:
    """The slots, or None if somebody was faster."""
    # a lease that cannot be renewed must not end a step of hours
    slot = concurrency(
        names,
        strict=True,
        lease_duration=LEASE_SECONDS,
        max_retries=0,
        raise_on_lease_renewal_failure=False,
    )
    try:
        slot.__enter__()
    except ConcurrencySlotAcquisitionError as error:
        if (
            isinstance(error.__cause__, HTTPStatusError)
            and error.__cause__.response.status_code == HTTPStatus.LOCKED
        ):
            return None
        raise
    return slot


def _give_back(slot: AbstractContextManager[None]) -> None:
    """End a slot without a word to the body's result: hours of work do not fail because a server
    has gone away."""
    try:
        slot.__exit__(None, None, None)
    except Exception as error:
        get_logger("lmflows").warning(
            "Prefect did not take back a GPU slot; it counts as lost later: %s", error
        )
