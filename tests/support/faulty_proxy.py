"""An HTTP proxy in front of an S3 server that breaks what it carries, as told: the faults of real
networks and overloaded servers.

A `Fault` says what to do to which requests, and how often; the proxy's dice are seeded. It runs in
threads of the test's process and carries bodies with a Content-Length only, which is all that boto3
and the test server send.
"""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from tests.support.listener import Listener

Kind = Literal[
    "status",
    "reset upload",
    "reset download",
    "cut download",
    "cut upload",
    "flip download",
    "flip upload",
    "lose answer",
    "flip upload, lose answer",
    "slow",
]
BLOCK = 1 << 16


@dataclass
class Fault:
    """What happens to requests of that method whose target (path and query) matches the regular
    expression.

    Attributes:
        times: how often at most; None for always.
        chance: of each request that matches.
        status, code: of the error that the proxy answers in the server's stead.
        rate: bytes a second on a slow link.
        hits: how often it has happened.
    """

    kind: Kind
    method: str = ""
    target: str = ""
    times: int | None = None
    chance: float = 1.0
    status: int = 500
    code: str = "InternalError"
    rate: float = 1e6
    hits: int = 0


class FaultyProxy(Listener):
    """Carries everything to `upstream`."""

    def __init__(self, upstream: str, seed: int = 0) -> None:
        super().__init__()
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname or "", parts.port or 80)
        self.faults: list[Fault] = []
        self.at_once = self.most_at_once = 0
        self._dice, self._lock = random.Random(seed), threading.Lock()
        self.listen()

    def _choose(self, method: str, target: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                left = fault.times is None or fault.hits < fault.times
                if (
                    left
                    and fault.method in ("", method)
                    and re.search(fault.target, target)
                    and self._dice.random() < fault.chance
                ):
                    fault.hits += 1
                    return fault
        return None

    def _bit(self, length: int) -> int:
        """One of a body's bits."""
        with self._lock:
            return self._dice.randrange(8 * max(1, length))

    def serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, EOFError), socket.create_connection(self.upstream) as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._carry(Stream(client), Stream(server)):
                pass

    def _carry(self, client: Stream, server: Stream) -> bool:
        """One request and its answer; whether the connections can be used again."""
        head, headers = client.head()
        method, target, _ = head.split(" ", 2)
        fault = self._choose(method, target)
        with self._counted(is_part="partNumber=" in target):
            if "expect" in headers:
                client.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                del headers["expect"]
            if not self._request(
                head, headers, int(headers.get("content-length", 0)), fault, client, server
            ):
                return False
            return self._answer(method, fault, client, server)

    @contextmanager
    def _counted(self, *, is_part: bool) -> Iterator[None]:
        with self._lock:
            self.at_once += is_part
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self._lock:
                self.at_once -= is_part

    def _request(
        self,
        head: str,
        headers: dict[str, str],
        length: int,
        fault: Fault | None,
        client: Stream,
        server: Stream,
    ) -> bool:
        kind = fault.kind if fault else None
        if fault and kind == "status":
            client.copy(None, length)
            body = (
                "<?xml version='1.0' encoding='UTF-8'?>"
                f"<Error><Code>{fault.code}</Code><Message>planted</Message></Error>"
            ).encode()
            body = b"" if head.startswith("HEAD") else body
            client.socket.sendall(
                f"HTTP/1.1 {fault.status} Planted\r\nContent-Type: application/xml\r\n".encode()
                + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            return False
        if kind == "reset upload":
            client.copy(None, length // 2)
            return client.reset()
        if kind == "cut upload":
            headers["content-length"] = str(length // 2)
        server.socket.sendall(
            "\r\n".join([head, *(f"{name}: {value}" for name, value in headers.items())]).encode()
            + b"\r\n\r\n"
        )
        kept = length // 2 if kind == "cut upload" else length
        flip = self._bit(length) if "flip upload" in (kind or "") else None
        client.copy(server, kept, flip=flip, rate=fault.rate if fault and kind == "slow" else None)
        client.copy(None, length - kept)
        return True

    def _answer(self, method: str, fault: Fault | None, client: Stream, server: Stream) -> bool:
        kind = fault.kind if fault else None
        head, headers = server.head()
        length = (
            0
            if method == "HEAD" or head.split(" ")[1] in ("204", "304")
            else int(headers.get("content-length", 0))
        )
        if "lose answer" in (kind or ""):
            server.copy(None, length)
            return client.reset()
        client.socket.sendall(
            "\r\n".join([head, *(f"{name}: {value}" for name, value in headers.items())]).encode()
            + b"\r\n\r\n"
        )
        if kind in ("reset download", "cut download"):
            server.copy(client, length // 2)
            return client.reset() if kind == "reset download" else False
        flip = self._bit(length) if kind == "flip download" else None
        server.copy(
            client, length, flip=flip, rate=fault.rate if fault and kind == "slow" else None
        )
        return headers.get("connection", "").lower() != "close"


class Stream:
    """One end of a connection, read without ever taking more than the message at hand."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def head(self) -> tuple[str, dict[str, str]]:
        """The first line, and the headers by lower-case name; EOFError if the other side has hung
        up."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            seen = self.socket.recv(4096, socket.MSG_PEEK)
            if not seen:
                raise EOFError
            end = (data + seen).find(b"\r\n\r\n")
            data += self.socket.recv(len(seen) if end < 0 else end + 4 - len(data))
        first, *lines = data.decode("latin-1").rstrip("\r\n").split("\r\n")
        return first, {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }

    def copy(
        self,
        target: Stream | None,
        length: int,
        *,
        flip: int | None = None,
        rate: float | None = None,
    ) -> None:
        """So many bytes from here to there, or to nowhere; `flip` is the number of a bit."""
        done = 0
        while done < length:
            data = self.socket.recv(min(BLOCK, length - done))
            if not data:
                raise EOFError
            if flip is not None and done <= flip // 8 < done + len(data):
                data = bytearray(data)  # type: ignore[assignment]
                data[flip // 8 - done] ^= 1 << flip % 8  # type: ignore[index]
            done += len(data)
            if rate:
                time.sleep(len(data) / rate)
            if target:
                target.socket.sendall(data)

    def reset(self) -> bool:
        """Close with a TCP reset, as a crashed server or a firewall does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
        return False


@contextmanager
def in_front_of(upstream: str, *faults: Fault, seed: int = 0) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(upstream, seed)
    proxy.faults = list(faults)
    try:
        yield proxy
    finally:
        proxy.close()
