"""Bringing blobs into a folder: ranges of a large file in parallel, every byte hashed once while
the page cache still has it."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import wait
from functools import partial
from pathlib import Path

from artifacts.manifest import FileEntry
from artifacts.store.files import is_intact
from artifacts.store.layout import blob_key
from artifacts.store.protocol import Folder
from artifacts.store.s3.ranges import CHUNK, Differs, difference, fetch
from artifacts.store.s3.team import Team
from configs.errors import DiskFull
from configs.units import gb


class Download:
    """Brings blobs into a folder, each if it is not there intact. What has arrived stays, whatever
    happens to the others."""

    def __init__(self, team: Team, target: Folder, scratch: Path) -> None:
        self.team = team
        self.target = target
        self.scratch = scratch

    def keep(self, entry: FileEntry) -> bool:
        """Make sure that the target has the blob; whether it had to be fetched.

        Raises:
            Differs: the store has none, or another one: it was fetched twice, since a byte may be
                changed on the way, too.
            TransferError: it broke off.
        """
        if is_intact(self.target.blob(entry.sha256), entry):
            self.team.moved(entry.size)
            return False
        path = self.scratch / entry.sha256
        for _ in range(2):
            if self._fetch(path, entry) == entry.sha256:
                break
        else:
            path.unlink()
            raise Differs("changed")
        path.chmod(0o444)
        self.target.move_blob(path, entry)
        self.team.moved(entry.size)
        return True

    def _fetch(self, path: Path, entry: FileEntry) -> str:
        """Fetch a blob, durably; returns its hex sha256."""
        with path.open("w+b", buffering=0) as file:
            handle = file.fileno()
            os.ftruncate(handle, entry.size)
            if entry.size <= self.team.bucket.tuning.part_bytes:
                digest = self._fetch_whole(handle, entry)
            else:
                digest = self._fetch_ranges(handle, entry)
            os.fsync(handle)
        return digest

    def _fetch_whole(self, handle: int, entry: FileEntry) -> str:
        digest = hashlib.sha256()

        def sink(data: bytes, position: int) -> None:
            digest.update(data)
            _write(handle, data, position)

        fetch(self.team, blob_key(entry.sha256), (0, entry.size), entry.size, sink)
        return digest.hexdigest()

    def _fetch_ranges(self, handle: int, entry: FileEntry) -> str:
        """Ranges by the team's other threads; this one hashes what has arrived, in order."""
        key = blob_key(entry.sha256)
        # One question first: a wrong size is known before anything is fetched, and a server that
        # hashes a file when it is first asked for (rclone does) hashes it once, not once for each
        # range.
        found = difference(self.team.retrying(lambda: self.team.bucket.head(key)), entry)
        if found is not None:
            raise Differs(found)
        step = self.team.bucket.tuning.part_bytes
        spans = [(begin, min(entry.size, begin + step)) for begin in range(0, entry.size, step)]
        failed = threading.Event()
        sink = partial(_write, handle)
        jobs = [
            self.team.part(partial(fetch, self.team, key, span, entry.size, sink), failed)
            for span in spans
        ]
        digest = hashlib.sha256()
        view = memoryview(bytearray(CHUNK))
        try:
            for (begin, end), job in zip(spans, jobs, strict=True):
                job.result()
                while begin < end:
                    count = os.preadv(handle, [view[: min(CHUNK, end - begin)]], begin)
                    digest.update(view[:count])
                    begin += count
        finally:
            for job in jobs:  # nobody may write to a handle that will be another file's
                job.cancel()
            wait(jobs)
        return digest.hexdigest()


def _write(handle: int, data: bytes, position: int) -> None:
    """Write all of `data` at a position of an open file."""
    view = memoryview(data)
    while view:
        count = os.pwrite(handle, view, position)
        view = view[count:]
        position += count


def require_space(target: Folder, entries: Sequence[FileEntry]) -> None:
    """Raise DiskFull, before anything is fetched, if the files that are not there do not fit."""
    needed = sum(entry.size for entry in entries if not target.blob(entry.sha256).exists())
    free = shutil.disk_usage(target.root).free
    if needed > free:
        raise DiskFull(
            f"{gb(needed)} are to be fetched, {gb(free)} are free",
            where=str(target.root),
            hint="free some space, or set LMFLOWS_HOME to a larger disk",
        )
