"""Reading the bytes of an object to their end through failures, and comparing them with what a
manifest says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from botocore import exceptions as aws

from artifacts.manifest import FileEntry
from artifacts.store.s3.client import Bucket, Facts
from artifacts.store.s3.connection import MiB
from artifacts.store.s3.errors import is_absent, status_of
from artifacts.store.s3.team import Team
from configs.errors import ConfigError, TransferError

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

CHUNK = MiB // 2
Difference = Literal["missing", "changed"]


class Differs(Exception):
    """The store, or the folder, does not have what the manifest says: it is missing, or changed."""

    def __init__(self, what: Difference) -> None:
        super().__init__(what)
        self.what: Difference = what


def fits(facts: Facts | None, entry: FileEntry) -> bool:
    """Whether what a HEAD tells agrees with a blob; where the server keeps the SHA-256 of the whole
    object, that is as good as reading it."""
    return facts is not None and facts.size == entry.size and facts.sha256 in (None, entry.sha256)


def difference(facts: Facts | None, entry: FileEntry) -> Difference | None:
    """What is wrong with a blob by what a HEAD tells."""
    if facts is None:
        return "missing"
    return None if fits(facts, entry) else "changed"


def read_difference(team: Team, key: str, entry: FileEntry) -> Difference | None:
    """What is wrong with an object, every byte read. A difference is believed when it shows twice:
    the first may have come on the way."""
    what: Difference | None = None
    for _ in range(2):
        try:
            if _sha256_of(team, key, entry.size) == entry.sha256:
                return None
            what = "changed"
        except Differs as found:
            what = found.what
    return what


def _sha256_of(team: Team, key: str, size: int) -> str:
    """Hex sha256 of an object of that size; raises Differs if there is none."""
    digest = hashlib.sha256()
    fetch(team, key, (0, size), size, lambda data, _position: digest.update(data))
    return digest.hexdigest()


def fetch(
    team: Team, key: str, span: tuple[int, int], size: int, sink: Callable[[bytes, int], object]
) -> None:
    """Hand some bytes of an object of `size` bytes to `sink`, in order, each with its position.

    After a failure it goes on where it broke off, as long as there is some progress between the
    failures.

    Args:
        span: the first byte, and the one after the last.

    Raises:
        Differs: there is no such object, or it has another size.
        TransferError: it broke off, again and again.
    """
    if not size:  # no range has no bytes
        facts = team.bucket.head(key)
        if facts is None:
            raise Differs("missing")
        if facts.size:
            raise Differs("changed")
    position, end = span
    failures = 0
    while position < end:
        team.check()
        before = position
        try:
            for data in _stream(team.bucket, key, (position, end), size):
                sink(data, position)
                position += len(data)
                team.check()
        except TransferError:
            failures = 0 if position - before >= CHUNK else failures + 1
            if failures >= team.bucket.tuning.attempts:
                raise
            team.bucket.wait(failures, team.stopped)


def _stream(bucket: Bucket, key: str, span: tuple[int, int], size: int) -> Iterator[bytes]:
    """The bytes of one answer, until it breaks off."""
    position, end = span
    with bucket.explained(f"reading {key}"):
        answer = _ask(bucket, key, span, size)
        body = answer["Body"]
        try:
            _require_size(bucket, answer, whole=span == (0, size), size=size)
            while position < end:
                data = body.read(min(CHUNK, end - position))
                if not data:
                    raise TransferError(
                        f"the server ended {key} early",
                        where=str(bucket.location),
                        hint="run again: files that have arrived are kept",
                    )
                position += len(data)
                yield data
        finally:
            if position < end:
                # the rest of the answer is not wanted; a connection whose answer was read to its
                # end is used again
                body.close()


def _ask(bucket: Bucket, key: str, span: tuple[int, int], size: int) -> GetObjectOutputTypeDef:
    begin, end = span
    try:
        if span == (0, size):
            return bucket.client.get_object(Bucket=bucket.name, Key=bucket.key(key))
        return bucket.client.get_object(
            Bucket=bucket.name, Key=bucket.key(key), Range=f"bytes={begin}-{end - 1}"
        )
    except aws.ClientError as error:
        if is_absent(error):
            raise Differs("missing") from error
        if status_of(error) == 416:  # the object ends before the range begins
            raise Differs("changed") from error
        raise


def _require_size(
    bucket: Bucket, answer: GetObjectOutputTypeDef, *, whole: bool, size: int
) -> None:
    """Raise Differs if the object has another size."""
    if whole:
        there = str(answer["ContentLength"])
    else:
        there = answer.get("ContentRange", "").rpartition("/")[2]
    if not there:
        raise ConfigError(
            "the server does not send ranges of objects",
            where=str(bucket.location),
            hint="this server cannot hold a store",
        )
    if there != str(size):
        raise Differs("changed")
