"""What upload and download share: threads that stop together, a bound on memory, and reading a
range to its end through failures."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Literal, TypeVar

from botocore import exceptions as aws

from artifacts.manifest import FileEntry
from artifacts.store.s3.client import ABSENT, Bucket, MiB, code_of, status_of
from configs.errors import ConfigError, TransferError

T = TypeVar("T")
CHUNK = MiB // 2
REPORT_SECONDS = 0.5


class Stopped(Exception):
    """Another file of the same push or pull has failed: this one need not go on."""


class Differs(Exception):
    """The store does not have what the manifest says: the object is missing, or changed."""

    def __init__(self, what: Literal["missing", "changed"]) -> None:
        super().__init__(what)
        self.what = what


class Budget:
    """Bytes that may be in memory at a time. One request larger than all of it is let through
    alone."""

    def __init__(self, size: int) -> None:
        self.size = self.free = size
        self._changed = threading.Condition()

    def take(self, size: int, stopped: threading.Event) -> None:
        size = min(size, self.size)
        with self._changed:
            while self.free < size:
                if stopped.is_set():
                    raise Stopped
                self._changed.wait(0.2)
            self.free -= size

    def give(self, size: int) -> None:
        with self._changed:
            self.free += min(size, self.size)
            self._changed.notify_all()


class Team:
    """The threads of one push, pull or verify: some go through files, some carry parts of large
    ones; the first failure stops all.

    Nothing is said of progress but in the thread that called: who listens may not expect another.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.bucket, tuning = bucket, bucket.tuning
        self.stopped = threading.Event()
        self.budget = Budget(tuning.memory_bytes)
        self._files = ThreadPoolExecutor(tuning.threads, thread_name_prefix="s3-file")
        self._parts = ThreadPoolExecutor(tuning.threads, thread_name_prefix="s3-part")
        self._lock = threading.Lock()
        self._done = 0

    @contextmanager
    def working(self) -> Iterator[Team]:
        try:
            yield self
        finally:
            self.stopped.set()  # an error or Ctrl-C: whoever is waiting to try again, gives up
            for pool in (self._files, self._parts):
                pool.shutdown(wait=True, cancel_futures=True)

    def each(
        self,
        work: Callable[[FileEntry], T],
        entries: Iterable[FileEntry],
        report: Callable[[int], None] = lambda _done: None,
    ) -> list[T]:
        """`work` of each entry, in their order; the first error, if there is one. `report` hears
        the bytes that `moved` was told."""
        jobs = [self._files.submit(self._unless_stopped, work, entry) for entry in entries]
        pending: set[Future[T]] = set(jobs)
        while pending:
            done, pending = wait(pending, timeout=REPORT_SECONDS, return_when=FIRST_EXCEPTION)
            errors = [error for job in done if (error := job.exception())]
            if first := next((error for error in errors if not isinstance(error, Stopped)), None):
                raise first
            report(self._done)
        return [job.result() for job in jobs]

    def part(self, work: Callable[[], T], failed: threading.Event) -> Future[T]:
        """A part of a file for the other threads; `failed` is set if it fails."""
        job = self._parts.submit(work)
        job.add_done_callback(
            lambda job: failed.set() if job.cancelled() or job.exception() else None
        )
        return job

    def moved(self, size: int) -> None:
        """So many bytes are where they should be."""
        with self._lock:
            self._done += size

    def check(self) -> None:
        if self.stopped.is_set():
            raise Stopped

    def retrying(self, work: Callable[[], T]) -> T:
        """`Bucket.retrying`, given up when the team stops."""

        def unless_stopped() -> T:
            self.check()
            return work()

        return self.bucket.retrying(unless_stopped, self.stopped)

    def _unless_stopped(self, work: Callable[[FileEntry], T], entry: FileEntry) -> T:
        self.check()
        try:
            return work(entry)
        except BaseException:
            self.stopped.set()
            raise


def fetch(
    team: Team, relative: str, begin: int, end: int, size: int, sink: Callable[[bytes, int], object]
) -> None:
    """Hand the bytes [begin, end) of an object of `size` bytes to `sink`, in order, each with its
    position.

    After a failure it goes on where it broke off, as long as there is some progress between the
    failures.

    Raises:
        Differs: there is no such object, or it has another size.
        TransferError: it broke off, again and again.
    """
    if not size:  # no range has no bytes
        facts = team.bucket.head(relative)
        if facts is None or facts.size:
            raise Differs("changed" if facts else "missing")
    position, failures = begin, 0
    while position < end:
        team.check()
        before = position
        try:
            for data in _stream(team.bucket, relative, position, end, size):
                sink(data, position)
                position += len(data)
                team.check()
        except TransferError:
            failures = 0 if position - before >= CHUNK else failures + 1
            if failures >= team.bucket.tuning.attempts:
                raise
            team.bucket.wait(failures, team.stopped)


def _stream(bucket: Bucket, relative: str, begin: int, end: int, size: int) -> Iterator[bytes]:
    whole = begin == 0 and end == size
    with bucket.explained(f"reading {relative}"):
        try:
            if whole:
                answer = bucket.client.get_object(Bucket=bucket.name, Key=bucket.key(relative))
            else:
                answer = bucket.client.get_object(
                    Bucket=bucket.name, Key=bucket.key(relative), Range=f"bytes={begin}-{end - 1}"
                )
        except aws.ClientError as error:
            if code_of(error) in ABSENT:
                raise Differs("missing") from error
            if status_of(error) == 416:  # the object ends before the range begins
                raise Differs("changed") from error
            raise
        body = answer["Body"]
        try:
            there = (
                str(answer["ContentLength"])
                if whole
                else answer.get("ContentRange", "").rpartition("/")[2]
            )
            if not there:
                raise ConfigError(
                    "the server does not send ranges of objects",
                    where=str(bucket.location),
                    hint="this server cannot hold a store",
                )
            if there != str(size):
                raise Differs("changed")
            while begin < end:
                data = body.read(min(CHUNK, end - begin))
                if not data:
                    raise TransferError(
                        f"the server ended {relative} early",
                        where=str(bucket.location),
                        hint="run again: files that have arrived are kept",
                    )
                begin += len(data)
                yield data
        finally:
            if begin < end:
                # the rest of the answer is not wanted; a connection whose answer was read to its
                # end is used again
                body.close()


def sha256_of(team: Team, relative: str, size: int) -> str:
    """Hex sha256 of an object of that size; raises Differs if there is none."""
    digest = hashlib.sha256()
    fetch(team, relative, 0, size, size, lambda data, _position: digest.update(data))
    return digest.hexdigest()


def differs(team: Team, relative: str, entry: FileEntry) -> Literal["missing", "changed"] | None:
    """What is wrong with an object, every byte read. A difference is believed when it shows twice:
    the first may have come on the way."""
    for _ in range(2):
        try:
            if sha256_of(team, relative, entry.size) == entry.sha256:
                return None
            what: Literal["missing", "changed"] = "changed"
        except Differs as found:
            what = found.what
    return what
