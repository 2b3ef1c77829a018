"""Sending blobs: one request for a small file, parts for a large one, and what an interrupted
upload has finished is not sent again.

A blob is named by its SHA-256, so two pushers of the same file send the same bytes and may share an
upload. Each file is read and hashed once. A small file goes with its SHA-256, and each part with
its CRC-32; the server checks them. A server that does not say that it did, nor gives an MD5 as the
ETag, cannot be trusted to have what was sent: then the object is read back.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore import exceptions as aws

from artifacts.manifest import FileEntry
from artifacts.store.s3.client import Facts, MiB, code_of, may_pass, status_of
from artifacts.store.s3.transfer import CHUNK, Differs, Team, differs
from configs.errors import TransferError

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

MAX_PARTS = 10_000
# a larger part (of a file above 312 GiB) is read from the file again while it is sent
MAX_IN_MEMORY = 32 * MiB
ANEW = (
    "NoSuchUpload",
    "InvalidPart",
    "InvalidPartOrder",
    "ConditionalRequestConflict",
    "EntityTooSmall",
)
# of starting over: somebody aborted the upload, completed it, or sent other parts under its id
ROUNDS = 3
FEWEST_TO_LIST = 20  # blobs
# a blob older than this is made young when it is needed again: see `Upload.keep`
YOUNG_SECONDS = 12 * 3600.0


def part_bytes(size: int, smallest: int) -> int:
    """The part size of a file: always the same for the same file, so that an interrupted upload can
    go on. A multiple of 1 MiB or `smallest`."""
    if size <= smallest * MAX_PARTS:
        return smallest
    return -(-size // (MAX_PARTS * MiB)) * MiB


@dataclass(frozen=True)
class Part:
    """A part that the server has; `proved` if it said what shows that it has the right bytes,
    `checked` if it checks every body itself."""

    number: int
    etag: str
    crc32: str
    proved: bool
    checked: bool


class Upload:
    """Brings blobs of a local folder into the store, each if it is not there."""

    def __init__(self, team: Team) -> None:
        self.team, self.bucket = team, team.bucket
        self.listed: set[str] | None = None

    def expect(self, count: int) -> None:
        """Before so many blobs: one list in place of a question for each, if all that the store has
        fits into one."""
        if count >= FEWEST_TO_LIST:
            listed = self.team.retrying(lambda: self.bucket.first_page("blobs/sha256/"))
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
        if fits(facts, entry) and (
            facts.now - facts.modified < YOUNG_SECONDS  # type: ignore[union-attr]
            or self.team.retrying(lambda: self.bucket.refresh(key))
        ):
            self.team.moved(entry.size)
            return 0
        self._send(path, entry, key, damaged=facts is not None)
        return entry.size

    def _send(self, path: Path, entry: FileEntry, key: str, *, damaged: bool) -> None:
        for _ in range(2):
            send = self._whole if entry.size <= self.bucket.tuning.part_bytes else self._in_parts
            if send(path, entry, key, damaged):
                return
            if differs(self.team, key, entry) is None:
                return
            self.bucket.delete(key)  # a server that checks nothing has stored something else
            damaged = False
        raise TransferError(
            f"the server does not store what is sent as {key}",
            where=str(self.bucket.location),
            hint="check the network and the server: it returns other bytes than it was given",
        )

    # -- small files

    def _whole(self, path: Path, entry: FileEntry, key: str, damaged: bool) -> bool:
        """Send a file in one request; whether it is certain that the server has it."""
        self.team.budget.take(entry.size, self.team.stopped)
        try:
            with _missing_is_a_difference():
                data = path.read_bytes()
            if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
                raise Differs("changed")
            sent = self.team.retrying(lambda: self._put(key, data, entry, damaged))
            self.team.moved(entry.size)
            return sent
        finally:
            self.team.budget.give(entry.size)

    def _put(self, key: str, data: bytes, entry: FileEntry, damaged: bool) -> bool:
        checksum = base64.b64encode(bytes.fromhex(entry.sha256)).decode()
        unless: dict[str, Any] = {} if damaged else {"IfNoneMatch": "*"}
        with self.bucket.explained(f"sending {key}"):
            try:
                answer = self.bucket.client.put_object(
                    Bucket=self.bucket.name,
                    Key=self.bucket.key(key),
                    Body=data,
                    ChecksumSHA256=checksum,
                    **unless,
                )
            except aws.ClientError as error:
                # a server may not know the condition
                if unless and (there_already(error) or status_of(error) == 501):
                    # somebody else's, or our own whose answer was lost
                    facts = self.bucket.head(key)
                    return (
                        facts is not None and facts.sha256 is not None
                        if fits(facts, entry)
                        else self._put(key, data, entry, damaged=True)
                    )
                raise
        return (
            answer.get("ChecksumSHA256") == checksum
            or answer["ETag"].strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()
        )

    # -- large files

    def _in_parts(self, path: Path, entry: FileEntry, key: str, damaged: bool) -> bool:
        """Send a file in parts; whether it is certain that the server has it."""
        count = -(-entry.size // part_bytes(entry.size, self.bucket.tuning.part_bytes))
        for _ in range(ROUNDS):
            parts: list[Part] = []
            try:
                upload, finished = self.team.retrying(lambda: self._resume(key, count))
                parts = self._send_parts(path, entry, key, upload, finished)
                is_ours = self.team.retrying(
                    partial(self._complete, key, entry, upload, parts, damaged)
                )
                return all(part.checked or (part.proved and is_ours) for part in parts)
            except Anew:
                if fits(self.team.retrying(lambda: self.bucket.head(key)), entry):
                    # somebody else completed it, or our own attempt whose answer was lost; a server
                    # that checks has checked theirs, too
                    return bool(parts) and all(part.checked for part in parts)
        raise TransferError(
            f"the upload of {key} was ended by somebody else {ROUNDS} times",
            where=str(self.bucket.location),
            hint="run again",
        )

    def _resume(self, key: str, count: int) -> tuple[str, dict[int, Any]]:
        """The upload of so many parts to go on with, and those that are finished, by number: of
        several, the one with most, or a new one."""
        client, where = (
            self.bucket.client,
            dict[str, Any]({"Bucket": self.bucket.name, "Key": self.bucket.key(key)}),
        )
        best: tuple[str, dict[int, Any]] | None = None
        with self.bucket.explained(f"sending {key}"):
            try:
                pages = client.get_paginator("list_multipart_uploads").paginate(
                    Bucket=where["Bucket"], Prefix=where["Key"]
                )
                uploads = [
                    item["UploadId"]
                    for page in pages
                    for item in page.get("Uploads", ())
                    if item["Key"] == where["Key"]
                ]
            except aws.ClientError as error:
                if may_pass(error):
                    raise
                # not allowed, or not known there (rclone answers 404 if there are none): then it
                # starts anew
                uploads = []
            for upload in uploads:
                try:
                    listed = client.get_paginator("list_parts").paginate(**where, UploadId=upload)
                    parts = {
                        item["PartNumber"]: item
                        for page in listed
                        for item in page.get("Parts", ())
                    }
                except aws.ClientError as error:
                    # ended since it was listed: NoSuchUpload, on Ceph NoSuchKey
                    if status_of(error) != 404:
                        raise
                    continue
                if max(parts, default=0) > count:
                    # begun with smaller parts, and some servers complete an upload only with all
                    # that it has
                    continue
                if best is None or len(parts) > len(best[1]):
                    best = upload, parts
            return best or (
                client.create_multipart_upload(**where, ChecksumAlgorithm="CRC32")["UploadId"],
                {},
            )

    def _send_parts(
        self, path: Path, entry: FileEntry, key: str, upload: str, finished: dict[int, Any]
    ) -> list[Part]:
        """Read the file once, hash it, and hand its parts to the team."""
        size = part_bytes(entry.size, self.bucket.tuning.part_bytes)
        digest, jobs, failed = hashlib.sha256(), list[Future[Part]](), threading.Event()
        try:
            with _missing_is_a_difference(), path.open("rb", buffering=0) as file:
                for number, begin in enumerate(range(0, entry.size, size), start=1):
                    if failed.is_set():
                        break
                    length = min(size, entry.size - begin)
                    held = length if length <= MAX_IN_MEMORY else CHUNK
                    self.team.budget.take(held, self.team.stopped)
                    body = Body.read(file, path, begin, length, digest)
                    jobs.append(
                        self.team.part(
                            partial(self._part, key, upload, number, body, finished.get(number)),
                            failed,
                        )
                    )
                    jobs[-1].add_done_callback(partial(self._give_back, held))
                    del body  # it is the job's alone: no memory beyond the budget
                if not failed.is_set() and (file.read(1) or digest.hexdigest() != entry.sha256):
                    raise Differs("changed")
        except Differs:
            wait(jobs)
            # it is swept later: what is wrong here is worth more words
            with suppress(TransferError):
                self.bucket.retrying(lambda: self._give_up(key, upload))
            raise
        wait(jobs)  # before somebody starts over
        return [job.result() for job in jobs]

    def _give_back(self, size: int, _job: Future[Part]) -> None:
        self.team.budget.give(size)

    def _part(self, key: str, upload: str, number: int, body: Body, there: Any) -> Part:
        """Send a part, unless the server has it."""
        if there is not None and there["Size"] == body.size:
            etag, crc32 = there["ETag"], there.get("ChecksumCRC32")
            if crc32 == body.crc32 or (crc32 is None and etag.strip('"') == body.md5()):
                self.team.moved(body.size)
                return Part(number, etag, body.crc32, proved=True, checked=crc32 is not None)
        part = self.team.retrying(lambda: self._put_part(key, upload, number, body))
        # a body cut off or changed on the way to a server that checks nothing: mostly the second
        # attempt is whole
        if not part.proved:
            part = self.team.retrying(lambda: self._put_part(key, upload, number, body))
        self.team.moved(body.size)
        return part

    def _put_part(self, key: str, upload: str, number: int, body: Body) -> Part:
        with self.bucket.explained(f"sending part {number} of {key}"):
            try:
                answer = self.bucket.client.upload_part(
                    Bucket=self.bucket.name,
                    Key=self.bucket.key(key),
                    UploadId=upload,
                    PartNumber=number,
                    Body=body.stream(),
                    ContentLength=body.size,
                    ChecksumCRC32=body.crc32,
                )
            except aws.ClientError as error:
                if code_of(error) in ANEW:
                    raise Anew from error
                raise
        checked = answer.get("ChecksumCRC32") == body.crc32
        return Part(
            number,
            answer["ETag"],
            body.crc32,
            checked or answer["ETag"].strip('"') == body.md5(),
            checked,
        )

    def _complete(
        self, key: str, entry: FileEntry, upload: str, parts: list[Part], damaged: bool
    ) -> bool:
        """Make an object of the parts; False if somebody else's was there first."""
        named: Any = {
            "Parts": [
                {"PartNumber": part.number, "ETag": part.etag, "ChecksumCRC32": part.crc32}
                for part in parts
            ]
        }
        unless: dict[str, Any] = {} if damaged else {"IfNoneMatch": "*"}
        with self.bucket.explained(f"completing {key}"):
            try:
                self.bucket.client.complete_multipart_upload(
                    Bucket=self.bucket.name,
                    Key=self.bucket.key(key),
                    UploadId=upload,
                    MultipartUpload=named,
                    **unless,
                )
            except aws.ClientError as error:
                if code_of(error) in ANEW:
                    raise Anew from error
                if not (unless and (there_already(error) or status_of(error) == 501)):
                    raise
                if not fits(self.bucket.head(key), entry):
                    return self._complete(key, entry, upload, parts, damaged=True)
                self._give_up(key, upload)
                return False
        return True

    def _give_up(self, key: str, upload: str) -> None:
        with (
            self.bucket.explained(f"giving up an upload of {key}"),
            suppress(self.bucket.client.exceptions.NoSuchUpload),
        ):
            self.bucket.client.abort_multipart_upload(
                Bucket=self.bucket.name, Key=self.bucket.key(key), UploadId=upload
            )


class Anew(Exception):
    """An upload cannot go on under its id."""


@dataclass(frozen=True)
class Body:
    """The bytes of a part: in memory, or if that is too much, the place in the file where they are
    read again to be sent."""

    data: bytes | None
    path: Path
    begin: int
    size: int
    crc32: str

    @classmethod
    def read(cls, file: FileIO, path: Path, begin: int, size: int, digest: Hash) -> Body:
        """The next `size` bytes of a file, hashed; raises Differs if it has no more of them."""
        crc, data, left = 0, None, size
        while left:
            data = file.read(left if size <= MAX_IN_MEMORY else min(left, CHUNK))
            if not data:
                raise Differs("changed")
            digest.update(data)
            crc = zlib.crc32(data, crc)
            left -= len(data)
        in_memory = data if data is not None and len(data) == size else None
        return cls(in_memory, path, begin, size, base64.b64encode(crc.to_bytes(4, "big")).decode())

    def stream(self) -> Any:
        """What boto3 takes as a body."""
        return self.data if self.data is not None else FilePart(self.path, self.begin, self.size)

    def md5(self) -> str:
        digest, body = hashlib.md5(usedforsecurity=False), self.stream()
        for data in [body] if isinstance(body, bytes) else iter(partial(body.read, CHUNK), b""):
            digest.update(data)
        return digest.hexdigest()


class FilePart(RawIOBase):
    """A stretch of a file as a file of its own."""

    def __init__(self, path: Path, begin: int, size: int) -> None:
        self._file, self._begin, self._size, self._at = path.open("rb", buffering=0), begin, size, 0

    def __len__(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        data = os.pread(
            self._file.fileno(),
            left if size is None or size < 0 else min(size, left),
            self._begin + self._at,
        )
        self._at += len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


def blob_key(sha256: str) -> str:
    return f"blobs/sha256/{sha256}"


def fits(facts: Facts | None, entry: FileEntry) -> bool:
    """Whether what a HEAD tells agrees with a blob; where the server keeps the SHA-256 of the whole
    object, that is as good as reading it."""
    return facts is not None and facts.size == entry.size and facts.sha256 in (None, entry.sha256)


def there_already(error: aws.ClientError) -> bool:
    return code_of(error) == "PreconditionFailed" or status_of(error) == 412


@contextmanager
def _missing_is_a_difference() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise Differs("missing") from None
