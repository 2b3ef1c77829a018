"""The small mutable files of an S3 store: each change is one conditional write, and only where the
server is known to honour them."""

from __future__ import annotations

import base64
import hashlib
import threading
import uuid
from typing import Any, Literal

from botocore import exceptions as aws

from artifacts.manifest import check_path
from artifacts.store.objects import moved
from artifacts.store.s3.client import Bucket
from artifacts.store.s3.errors import (
    code_of,
    is_absent,
    is_refused_condition,
    is_unknown,
    status_of,
)
from configs.errors import ConditionalWritesIgnored, TransferError

CONFLICTS = 20  # AWS answers 409 while another conditional write of the same key is under way
NO_VERSION = f'"{"0" * 32}"'  # an ETag that no object has
Answer = Literal["written", "moved", "conflict"]


class S3Objects:
    """Small files by key below an S3 prefix. A version is an ETag."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self._probed = False
        # the server takes an ETag in If-Match only without its quotes, as Ceph 16 does
        self._bare = False
        self._lock = threading.Lock()

    def get(self, key: str) -> tuple[bytes, str] | None:
        return self.bucket.read(check_path(key))

    def swap(self, key: str, data: bytes, *, seen: str | None) -> None:
        check_path(key)
        self.probe()
        for conflict in range(CONFLICTS):
            answer = self._swap(key, data, seen)
            if answer == "written":
                return
            if answer == "conflict":
                self.bucket.wait(min(conflict, 4))
                continue
            # Refused. A retry after a lost answer is refused because of its own first attempt: then
            # what is there is what we wrote.
            now = self.get(key)
            if now is not None and now[0] == data and now[1] != seen:
                return
            raise moved(key)
        raise TransferError(
            f"{CONFLICTS} writes of {key} in a row met another one",
            where=str(self.bucket.location),
            hint="try again",
        )

    def put(self, key: str, data: bytes) -> None:
        def once() -> None:
            with self.bucket.explained(f"writing {key}"):
                self._write(key, data)

        check_path(key)
        self.bucket.retrying(once)

    def keys(self, prefix: str) -> list[str]:
        """Like a folder's: only files, not the empty objects ending in / that consoles and mounts
        put for folders."""
        return sorted(item.key for item in self.bucket.below(prefix) if item.key.endswith(".json"))

    def delete(self, key: str) -> None:
        self.bucket.delete(check_path(key))

    def probe(self) -> None:
        """Make sure, once, that the server refuses what If-None-Match and If-Match forbid, and
        takes what they allow.

        Raises:
            ConditionalWritesIgnored: it does not: of two promotions at once, one would be lost in
                silence.
        """
        with self._lock:
            if self._probed:
                return
            key = f"probes/{uuid.uuid4().hex}"
            try:
                problem = self._try_conditions(key)
            finally:
                self.delete(key)
            if problem is not None:
                raise ConditionalWritesIgnored(
                    f"the server {problem}",
                    where=str(self.bucket.location),
                    hint="keep the registry on a server with conditional writes (AWS S3, MinIO from"
                    " 2024-09 on, Ceph from Tentacle on, ...) or in a folder; artifacts may stay"
                    " here",
                )
            self._probed = True

    def _try_conditions(self, key: str) -> str | None:
        """What is wrong with the server's conditional writes, if anything."""

        def is_taken(data: bytes, seen: str | None) -> bool:
            return self._swap(key, data, seen) == "written"

        def content() -> tuple[bytes, str]:
            return self.get(key) or (b"", "")

        # refused only after a lost answer, and then the object is there all the same
        is_taken(b"first", None)
        first, version = content()
        if first != b"first":
            return "refuses If-None-Match: * for a key that is not there"
        if is_taken(b"second", None) or content()[0] != b"first":
            return "ignores If-None-Match"
        if is_taken(b"third", NO_VERSION) or content()[0] != b"first":
            return "ignores If-Match"
        is_taken(b"fourth", version)
        if content()[0] == b"fourth":
            return None
        self._bare = True
        if is_taken(b"fifth", NO_VERSION) or content()[0] != b"first":
            return "ignores If-Match without quotes, and refuses it with them"
        is_taken(b"sixth", version)
        if content()[0] != b"sixth":
            return "refuses If-Match with the version that it gave"
        if is_taken(b"seventh", version) or content()[0] != b"sixth":
            return "ignores If-Match"
        return None

    def _swap(self, key: str, data: bytes, seen: str | None) -> Answer:
        """One conditional write, and how the server answers it: `conflict` is worth another try."""
        return self.bucket.retrying(lambda: self._swap_once(key, data, seen))

    def _swap_once(self, key: str, data: bytes, seen: str | None) -> Answer:
        with self.bucket.explained(f"writing {key}"):
            try:
                self._write(key, data, **self._condition(seen))
            except aws.ClientError as error:
                busy = code_of(error) in ("ConditionalRequestConflict", "OperationAborted")
                if busy or status_of(error) == 409:
                    return "conflict"
                if is_refused_condition(error) or (seen is not None and is_absent(error)):
                    return "moved"
                if is_unknown(error):
                    raise ConditionalWritesIgnored(
                        "the server knows no conditional writes",
                        where=str(self.bucket.location),
                        hint="keep the registry on a server that has them, or in a folder",
                    ) from error
                raise
        return "written"

    def _condition(self, seen: str | None) -> dict[str, str]:
        if seen is None:
            return {"IfNoneMatch": "*"}
        return {"IfMatch": seen.strip('"') if self._bare else seen}

    def _write(self, key: str, data: bytes, **condition: Any) -> None:
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        self.bucket.client.put_object(
            Bucket=self.bucket.name,
            Key=self.bucket.key(key),
            Body=data,
            ChecksumSHA256=checksum,
            **condition,
        )
