"""One prefix of one bucket: its objects, read, listed and removed, with retries and with errors
that name a remedy (`artifacts.store.s3.errors`). Knows nothing of artifacts.

What is sent carries a checksum that we compute and the server checks (SHA-256 for a whole object,
CRC-32 for a part), as a signed header. So the body itself is not signed once more: botocore would
hash every byte a second time.
"""

from __future__ import annotations

import random
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

from boto3.s3.transfer import TransferConfig
from botocore import exceptions as aws

from artifacts.store.s3.connection import MiB, Tuning, connect
from artifacts.store.s3.errors import (
    can_be_explained,
    explain,
    is_absent,
    is_of_credentials,
    status_of,
)
from configs.errors import ConfigError, TransferError
from configs.location import S3Location

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        HeadObjectOutputTypeDef,
        ListObjectsV2OutputTypeDef,
        ResponseMetadataTypeDef,
    )

T = TypeVar("T")
# One request up to 1 GiB: a server must read and write all of it before it answers. More than 5 GiB
# no server copies in one.
COPY = TransferConfig(
    multipart_threshold=1024 * MiB, multipart_chunksize=512 * MiB, use_threads=True
)
LONGEST_WAIT = 20.0  # seconds between two attempts


@dataclass(frozen=True)
class Facts:
    """What a HEAD tells: bytes, Unix times of the last write and of the answer, both by the
    server's clock, and the hex SHA-256 of the whole object if the server keeps one."""

    size: int
    modified: float
    now: float
    sha256: str | None


@dataclass(frozen=True)
class Listed:
    """What a list tells of an object: its key relative to the prefix, bytes, and Unix time of the
    last write by the server's clock."""

    key: str
    size: int
    modified: float


class Bucket:
    """The objects below a location's prefix. Keys are relative to it; the client is made on first
    use, and is shared by all threads."""

    def __init__(self, location: S3Location, tuning: Tuning | None = None) -> None:
        self.location = location
        self.tuning = tuning or Tuning()
        self.name = location.bucket
        self._client: S3Client | None = None
        self._exists = False
        self._lock = threading.Lock()

    def key(self, relative: str) -> str:
        """The key as the server knows it."""
        return f"{self.location.prefix}/{relative}" if self.location.prefix else relative

    def relative(self, key: str) -> str:
        """A server's key without the prefix."""
        return key.removeprefix(f"{self.location.prefix}/") if self.location.prefix else key

    @property
    def client(self) -> S3Client:
        """The client of boto3.

        Raises:
            ConfigError: none can be made.
        """
        with self._lock:
            if self._client is None:
                with self.explained():
                    self._client = self._connect()
            return self._client

    def _connect(self) -> S3Client:
        try:
            return connect(self.location, self.tuning)
        except ValueError as error:
            if isinstance(error, aws.BotoCoreError) or is_of_credentials(error):
                raise
            raise ConfigError(
                f"no client can be made ({error})",
                where=str(self.location),
                hint="check the endpoint",
            ) from error

    @contextmanager
    def explained(self, what: str = "") -> Iterator[None]:
        """Turn what boto3 raises into an error that names the location, what was being done, and
        the remedy."""
        try:
            yield
        except Exception as error:
            if not can_be_explained(error):
                raise
            raise explain(error, str(self.location), what) from error

    def head(self, relative: str) -> Facts | None:
        """What is known of an object; None if there is none."""
        with self.explained(f"looking for {relative}"):
            try:
                answer = self.client.head_object(
                    Bucket=self.name, Key=self.key(relative), ChecksumMode="ENABLED"
                )
            except aws.ClientError as error:
                if not is_absent(error):
                    raise
                self._require_bucket()
                return None
        return Facts(
            size=answer["ContentLength"],
            modified=answer["LastModified"].timestamp(),
            now=_date(answer["ResponseMetadata"]),
            sha256=_sha256(answer),
        )

    def _require_bucket(self) -> None:
        """The answer to a HEAD does not tell a missing object from a missing bucket: ask, once."""
        if self._exists:
            return
        try:
            self.client.head_bucket(Bucket=self.name)
        except aws.ClientError as error:
            if status_of(error) == 404:
                error.response["Error"] = {
                    "Code": "NoSuchBucket",
                    "Message": "The specified bucket does not exist",
                }
                raise
            if status_of(error) != 403:  # who may not ask about the bucket may still use it
                raise
        self._exists = True

    def read(self, relative: str, limit: int | None = None) -> tuple[bytes, str] | None:
        """A small object, or its first `limit` bytes, and its ETag; None if there is none."""

        def once() -> tuple[bytes, str] | None:
            with self.explained(f"reading {relative}"):
                try:
                    answer = self.client.get_object(
                        Bucket=self.name, Key=self.key(relative), ChecksumMode="ENABLED"
                    )
                    with closing(answer["Body"]) as body:
                        return body.read(limit), answer["ETag"]
                except aws.ClientError as error:
                    if not is_absent(error):
                        raise
                    return None

        return self.retrying(once)

    def below(self, prefix: str) -> list[Listed]:
        """What is stored below a prefix."""

        def once() -> list[Listed]:
            with self.explained(f"listing {prefix}"):
                pages = self.client.get_paginator("list_objects_v2").paginate(
                    Bucket=self.name, Prefix=self.key(prefix)
                )
                return [item for page in pages for item in self._listed(page)]

        return self.retrying(once)

    def first_page(self, prefix: str) -> list[Listed] | None:
        """What is stored below a prefix if one request tells all of it (AWS: 1000 objects), else
        None."""
        with self.explained(f"listing {prefix}"):
            page = self.client.list_objects_v2(Bucket=self.name, Prefix=self.key(prefix))
            return None if page.get("IsTruncated") else self._listed(page)

    def _listed(self, page: ListObjectsV2OutputTypeDef) -> list[Listed]:
        return [
            Listed(self.relative(item["Key"]), item["Size"], item["LastModified"].timestamp())
            for item in page.get("Contents", ())
        ]

    def refresh(self, relative: str) -> bool:
        """Make an object young by copying it onto itself, on the server; False if there is none."""
        source = {"Bucket": self.name, "Key": self.key(relative)}
        with self.explained(f"touching {relative}"):
            try:
                self.client.copy(
                    source,  # type: ignore[arg-type]
                    self.name,
                    source["Key"],
                    ExtraArgs={"MetadataDirective": "REPLACE"},
                    Config=COPY,
                )
            except aws.ClientError as error:
                if not is_absent(error):
                    raise
                return False
        return True

    def delete(self, relative: str) -> None:
        """Remove an object; it need not exist."""

        def once() -> None:
            with self.explained(f"removing {relative}"):
                try:
                    self.client.delete_object(Bucket=self.name, Key=self.key(relative))
                except aws.ClientError as error:
                    if not is_absent(error):  # some servers say so of what is gone already
                        raise

        self.retrying(once)

    def retrying(self, work: Callable[[], T], stopped: threading.Event | None = None) -> T:
        """Do it again while it fails in a way that may pass; raises the last TransferError when the
        attempts are used up."""
        for attempt in range(self.tuning.attempts - 1):
            try:
                return work()
            except TransferError:
                self.wait(attempt, stopped)
        return work()

    def wait(self, attempt: int, stopped: threading.Event | None = None) -> None:
        """The wait before the next attempt; shorter if the event is set."""
        doubled = min(LONGEST_WAIT, self.tuning.backoff_seconds * 2**attempt)
        (stopped or threading.Event()).wait(doubled * random.uniform(0.5, 1.0))


def _sha256(answer: HeadObjectOutputTypeDef) -> str | None:
    """The hex SHA-256 of the whole object, if the answer has it: that of an object made of parts is
    a hash of their hashes, with a dash in it."""
    checksum = answer.get("ChecksumSHA256")
    of_all = answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    if not checksum or not of_all or "-" in checksum:
        return None
    return b64decode(checksum).hex()


def _date(metadata: ResponseMetadataTypeDef) -> float:
    try:
        return parsedate_to_datetime(metadata["HTTPHeaders"]["date"]).timestamp()
    except (KeyError, ValueError):
        return time.time()
