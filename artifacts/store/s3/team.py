"""The threads of one push, pull or verify: they stop together, and share a bound on memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from artifacts.manifest import FileEntry
from artifacts.store.s3.client import Bucket

T = TypeVar("T")
REPORT_SECONDS = 0.5


class Stopped(Exception):
    """Another file of the same push or pull has failed: this one need not go on."""


class Budget:
    """Bytes that may be in memory at a time. One request larger than all of it is let through
    alone."""

    def __init__(self, size: int) -> None:
        self.size = self.free = size
        self._changed = threading.Condition()

    def take(self, size: int, stopped: threading.Event) -> None:
        """Wait until there is room for so many bytes; raises Stopped if the event is set before."""
        size = min(size, self.size)
        with self._changed:
            while self.free < size:
                if stopped.is_set():
                    raise Stopped
                self._changed.wait(0.2)
            self.free -= size

    def give(self, size: int) -> None:
        """So many bytes are in memory no more."""
        with self._changed:
            self.free += min(size, self.size)
            self._changed.notify_all()


class Team:
    """The threads of one push, pull or verify: some go through files, some carry parts of large
    ones; the first failure stops all.

    Nothing is said of progress but in the thread that called: who listens may not expect another.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.stopped = threading.Event()
        self.budget = Budget(bucket.tuning.memory_bytes)
        self._files = ThreadPoolExecutor(bucket.tuning.threads, thread_name_prefix="s3-file")
        self._parts = ThreadPoolExecutor(bucket.tuning.threads, thread_name_prefix="s3-part")
        self._lock = threading.Lock()
        self._done = 0

    @contextmanager
    def working(self) -> Iterator[Team]:
        """The team at work; on the way out all of it has stopped."""
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
            for error in (job.exception() for job in done):
                if error is not None and not isinstance(error, Stopped):
                    raise error
            report(self._done)
        return [job.result() for job in jobs]

    def part(self, work: Callable[[], T], failed: threading.Event) -> Future[T]:
        """A part of a file for the other threads; `failed` is set if it fails."""

        def end(job: Future[T]) -> None:
            if job.cancelled() or job.exception() is not None:
                failed.set()

        job = self._parts.submit(work)
        job.add_done_callback(end)
        return job

    def moved(self, size: int) -> None:
        """So many bytes are where they should be."""
        with self._lock:
            self._done += size

    def check(self) -> None:
        """Raise Stopped if the team has stopped."""
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
