"""Sending blobs: one request for a small file, parts for a large one
(`artifacts.store.s3.multipart`).

A blob is named by its SHA-256, so two pushers of the same file send the same bytes and may share an
upload. Each file is read and hashed once. A small file goes with its SHA-256, and each part with
its CRC-32; the server checks them. A server that does not say that it did, nor gives an MD5 as the
ETag, cannot be trusted to have what was sent: then the object is read back.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from botocore import exceptions as aws

from artifacts.manifest import FileEntry
from artifacts.store.layout import blob_key, folder_of
from artifacts.store.s3.client import Facts
from artifacts.store.s3.errors import is_refused_condition, is_unknown
from artifacts.store.s3.multipart import MultipartUpload
from artifacts.store.s3.ranges import Differs, fits, read_difference
from artifacts.store.s3.team import Team
from configs.errors import TransferError

FEWEST_TO_LIST = 20  # blobs
# a blob older than this is made young when it is needed again: see `Upload.keep`
YOUNG_SECONDS = 12 * 3600.0


class Upload:
    """Brings blobs of a local folder into the store, each if it is not there."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.bucket = team.bucket
        self.listed: set[str] | None = None

    def expect(self, count: int) -> None:
        """Before so many blobs: one list in place of a question for each, if all that the store has
        fits into one."""
        if count >= FEWEST_TO_LIST:
            listed = self.team.retrying(lambda: self.bucket.first_page(folder_of("blobs")))
            self.listed = None if listed is None else {item.key for item in listed}

    def keep(self, path: Path, entry: FileEntry) -> int:
        """Make sure that the blob is in the store and young; returns the bytes sent.

        A collection of garbage elsewhere removes what is old and not needed, and knows nothing of
        the manifest that we are about to write.

        Raises:
            Differs: the local file is not what the manifest says; nothing of it is visible.
            TransferError: it broke off; finished parts are kept.
        """
        key = blob_key(entry.sha256)
        # who sends it meanwhile sends the same
        is_new = self.listed is not None and key not in self.listed
        facts = None if is_new else self.team.retrying(lambda: self.bucket.head(key))
        if facts is not None and fits(facts, entry) and self._make_young(key, facts):
            self.team.moved(entry.size)
            return 0
        self._send(path, entry, replace=facts is not None)
        return entry.size

    def _make_young(self, key: str, facts: Facts) -> bool:
        """False if the object has gone meanwhile."""
        if facts.now - facts.modified < YOUNG_SECONDS:
            return True
        return self.team.retrying(lambda: self.bucket.refresh(key))

    def _send(self, path: Path, entry: FileEntry, *, replace: bool) -> None:
        """`replace`: what the store has under its name is damaged."""
        key = blob_key(entry.sha256)
        for _ in range(2):
            if entry.size <= self.bucket.tuning.part_bytes:
                is_certain = self._send_whole(path, entry, replace=replace)
            else:
                is_certain = MultipartUpload(self.team, path, entry, replace=replace).send()
            if is_certain or read_difference(self.team, key, entry) is None:
                return
            self.bucket.delete(key)  # a server that checks nothing has stored something else
            replace = False
        raise TransferError(
            f"the server does not store what is sent as {key}",
            where=str(self.bucket.location),
            hint="check the network and the server: it returns other bytes than it was given",
        )

    def _send_whole(self, path: Path, entry: FileEntry, *, replace: bool) -> bool:
        """Send a file in one request; whether it is certain that the server has it."""
        self.team.budget.take(entry.size, self.team.stopped)
        try:
            data = _read(path, entry)
            is_certain = self.team.retrying(lambda: self._put(data, entry, replace=replace))
            self.team.moved(entry.size)
            return is_certain
        finally:
            self.team.budget.give(entry.size)

    def _put(self, data: bytes, entry: FileEntry, *, replace: bool) -> bool:
        key = blob_key(entry.sha256)
        checksum = base64.b64encode(bytes.fromhex(entry.sha256)).decode()
        condition: dict[str, Any] = {} if replace else {"IfNoneMatch": "*"}
        with self.bucket.explained(f"sending {key}"):
            try:
                answer = self.bucket.client.put_object(
                    Bucket=self.bucket.name,
                    Key=self.bucket.key(key),
                    Body=data,
                    ChecksumSHA256=checksum,
                    **condition,
                )
            except aws.ClientError as error:
                # a server may not know the condition
                if replace or not (is_refused_condition(error) or is_unknown(error)):
                    raise
                # somebody else's, or our own whose answer was lost
                facts = self.bucket.head(key)
                if facts is None or not fits(facts, entry):
                    return self._put(data, entry, replace=True)
                return facts.sha256 is not None
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return answer.get("ChecksumSHA256") == checksum or answer["ETag"].strip('"') == md5


def _read(path: Path, entry: FileEntry) -> bytes:
    """A file that fits into memory; raises Differs if it is not what the manifest says."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Differs("missing") from None
    if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise Differs("changed")
    return data
