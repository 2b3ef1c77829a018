"""Sending one large file in parts; what an interrupted upload has finished is not sent again."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore import exceptions as aws

from artifacts.manifest import FileEntry
from artifacts.store.layout import blob_key
from artifacts.store.s3.errors import (
    code_of,
    is_refused_condition,
    is_unknown,
    may_pass,
    status_of,
)
from artifacts.store.s3.parts import Body, SentPart, held_bytes, part_bytes
from artifacts.store.s3.ranges import Differs, fits
from artifacts.store.s3.team import Team
from configs.errors import TransferError

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import PartTypeDef

ENDED = (
    "NoSuchUpload",
    "InvalidPart",
    "InvalidPartOrder",
    "ConditionalRequestConflict",
    "EntityTooSmall",
)
# of starting over: somebody aborted the upload, completed it, or sent other parts under its id
ROUNDS = 3


class UploadEnded(Exception):
    """An upload cannot go on under its id."""


@dataclass(frozen=True)
class Begun:
    """An upload to go on with, and its finished parts by number."""

    id: str
    finished: dict[int, PartTypeDef]


class MultipartUpload:
    """One file on its way to the store, in parts.

    Args:
        replace: what the store has under its name is damaged.
    """

    def __init__(self, team: Team, path: Path, entry: FileEntry, *, replace: bool) -> None:
        self.team = team
        self.bucket = team.bucket
        self.path = path
        self.entry = entry
        self.replace = replace
        self.key = blob_key(entry.sha256)
        self.part_bytes = part_bytes(entry.size, self.bucket.tuning.part_bytes)

    def send(self) -> bool:
        """Send it; whether it is certain that the server has it.

        Raises:
            Differs: the file is not what the manifest says; nothing of it is visible.
            TransferError: it broke off; finished parts are kept.
        """
        for _ in range(ROUNDS):
            parts: list[SentPart] = []
            try:
                upload = self.team.retrying(self._resume)
                parts = self._send_parts(upload)
                complete = partial(self._complete, upload.id, parts, replace=self.replace)
                is_ours = self.team.retrying(complete)
                return all(part.checked or (part.proved and is_ours) for part in parts)
            except UploadEnded:
                if fits(self.team.retrying(lambda: self.bucket.head(self.key)), self.entry):
                    # somebody else completed it, or our own attempt whose answer was lost; a server
                    # that checks has checked theirs, too
                    return bool(parts) and all(part.checked for part in parts)
        raise TransferError(
            f"the upload of {self.key} was ended by somebody else {ROUNDS} times",
            where=str(self.bucket.location),
            hint="run again",
        )

    # -- the upload to go on with

    def _resume(self) -> Begun:
        """Of several uploads the one with most parts, or a new one."""
        with self.bucket.explained(f"sending {self.key}"):
            found = [self._parts_of(upload) for upload in self._uploads()]
            usable = [begun for begun in found if begun is not None]
            if usable:
                return max(usable, key=lambda begun: len(begun.finished))
            answer = self.bucket.client.create_multipart_upload(
                Bucket=self.bucket.name,
                Key=self.bucket.key(self.key),
                ChecksumAlgorithm="CRC32",
            )
            return Begun(answer["UploadId"], {})

    def _uploads(self) -> list[str]:
        """The ids of all uploads of this file that were begun."""
        key = self.bucket.key(self.key)
        pages = self.bucket.client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self.bucket.name, Prefix=key
        )
        try:
            uploads = [upload for page in pages for upload in page.get("Uploads", ())]
        except aws.ClientError as error:
            if may_pass(error):
                raise
            # not allowed, or not known there (rclone answers 404 if there are none): then it starts
            # anew
            return []
        return [upload["UploadId"] for upload in uploads if upload["Key"] == key]

    def _parts_of(self, upload: str) -> Begun | None:
        """An upload with its finished parts; None if it cannot be gone on with."""
        pages = self.bucket.client.get_paginator("list_parts").paginate(
            Bucket=self.bucket.name, Key=self.bucket.key(self.key), UploadId=upload
        )
        try:
            finished = {
                part["PartNumber"]: part for page in pages for part in page.get("Parts", ())
            }
        except aws.ClientError as error:
            # ended since it was listed: NoSuchUpload, on Ceph NoSuchKey
            if status_of(error) != 404:
                raise
            return None
        count = -(-self.entry.size // self.part_bytes)
        # begun with smaller parts, and some servers complete an upload only with all that it has
        if max(finished, default=0) > count:
            return None
        return Begun(upload, finished)

    # -- its parts

    def _send_parts(self, upload: Begun) -> list[SentPart]:
        """Read the file once, hash it, and hand its parts to the team."""
        digest = hashlib.sha256()
        failed = threading.Event()
        jobs: list[Future[SentPart]] = []
        try:
            with self.path.open("rb", buffering=0) as file:
                starts = range(0, self.entry.size, self.part_bytes)
                for number, begin in enumerate(starts, start=1):
                    if failed.is_set():
                        break
                    size = min(self.part_bytes, self.entry.size - begin)
                    held = held_bytes(size)
                    self.team.budget.take(held, self.team.stopped)
                    body = Body.read(file, self.path, (begin, size), digest)
                    job = self.team.part(partial(self._part, upload, number, body), failed)
                    job.add_done_callback(partial(self._give_back, held))
                    jobs.append(job)
                    del body  # it is the job's alone: no memory beyond the budget
                whole = not file.read(1) and digest.hexdigest() == self.entry.sha256
                if not failed.is_set() and not whole:
                    raise Differs("changed")
        except FileNotFoundError:
            self._abandon(upload, jobs)
            raise Differs("missing") from None
        except Differs:
            self._abandon(upload, jobs)
            raise
        wait(jobs)  # before somebody starts over
        return [job.result() for job in jobs]

    def _abandon(self, upload: Begun, jobs: list[Future[SentPart]]) -> None:
        wait(jobs)
        # it is swept later: what is wrong here is worth more words
        with suppress(TransferError):
            self.bucket.retrying(lambda: self._give_up(upload.id))

    def _give_back(self, size: int, _job: Future[SentPart]) -> None:
        self.team.budget.give(size)

    def _part(self, upload: Begun, number: int, body: Body) -> SentPart:
        """Send a part, unless the server has it."""
        part = _same(upload.finished.get(number), body)
        if part is None:
            part = self.team.retrying(lambda: self._put_part(upload.id, number, body))
            # a body cut off or changed on the way to a server that checks nothing: mostly the
            # second attempt is whole
            if not part.proved:
                part = self.team.retrying(lambda: self._put_part(upload.id, number, body))
        self.team.moved(body.size)
        return part

    def _put_part(self, upload: str, number: int, body: Body) -> SentPart:
        with self.bucket.explained(f"sending part {number} of {self.key}"):
            try:
                answer = self.bucket.client.upload_part(
                    Bucket=self.bucket.name,
                    Key=self.bucket.key(self.key),
                    UploadId=upload,
                    PartNumber=number,
                    Body=body.stream(),  # type: ignore[arg-type]
                    ContentLength=body.size,
                    ChecksumCRC32=body.crc32,
                )
            except aws.ClientError as error:
                if code_of(error) in ENDED:
                    raise UploadEnded from error
                raise
        etag = answer["ETag"]
        checked = answer.get("ChecksumCRC32") == body.crc32
        proved = checked or etag.strip('"') == body.md5()
        return SentPart(number, etag, body.crc32, proved, checked)

    # -- its end

    def _complete(self, upload: str, parts: list[SentPart], *, replace: bool) -> bool:
        """Make an object of the parts; False if somebody else's was there first."""
        named: Any = {
            "Parts": [
                {"PartNumber": part.number, "ETag": part.etag, "ChecksumCRC32": part.crc32}
                for part in parts
            ]
        }
        condition: dict[str, Any] = {} if replace else {"IfNoneMatch": "*"}
        with self.bucket.explained(f"completing {self.key}"):
            try:
                self.bucket.client.complete_multipart_upload(
                    Bucket=self.bucket.name,
                    Key=self.bucket.key(self.key),
                    UploadId=upload,
                    MultipartUpload=named,
                    **condition,
                )
            except aws.ClientError as error:
                if code_of(error) in ENDED:
                    raise UploadEnded from error
                if replace or not (is_refused_condition(error) or is_unknown(error)):
                    raise
                if not fits(self.bucket.head(self.key), self.entry):
                    return self._complete(upload, parts, replace=True)
                self._give_up(upload)
                return False
        return True

    def _give_up(self, upload: str) -> None:
        with (
            self.bucket.explained(f"giving up an upload of {self.key}"),
            suppress(self.bucket.client.exceptions.NoSuchUpload),
        ):
            self.bucket.client.abort_multipart_upload(
                Bucket=self.bucket.name, Key=self.bucket.key(self.key), UploadId=upload
            )


def _same(there: PartTypeDef | None, body: Body) -> SentPart | None:
    """A finished part if it has the bytes that would be sent."""
    if there is None or there["Size"] != body.size:
        return None
    etag = there["ETag"]
    crc32 = there.get("ChecksumCRC32")
    if crc32 is None:
        if etag.strip('"') != body.md5():
            return None
    elif crc32 != body.crc32:
        return None
    number = there["PartNumber"]
    return SentPart(number, etag, body.crc32, proved=True, checked=crc32 is not None)
