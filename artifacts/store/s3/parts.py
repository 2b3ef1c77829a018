"""The parts of a large file: how large they are, and their bytes on the way to the server."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from dataclasses import dataclass
from functools import partial
from io import FileIO, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.store.s3.connection import MiB
from artifacts.store.s3.ranges import CHUNK, Differs

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

MAX_PARTS = 10_000
# a larger part (of a file above 312 GiB) is read from the file again while it is sent
MAX_IN_MEMORY = 32 * MiB


def part_bytes(size: int, smallest: int) -> int:
    """The part size of a file: always the same for the same file, so that an interrupted upload can
    go on. A multiple of 1 MiB or `smallest`."""
    if size <= smallest * MAX_PARTS:
        return smallest
    return -(-size // (MAX_PARTS * MiB)) * MiB


def held_bytes(size: int) -> int:
    """What a part of that size takes in memory while it is on its way."""
    return size if size <= MAX_IN_MEMORY else CHUNK


@dataclass(frozen=True)
class SentPart:
    """A part that the server has; `proved` if it said what shows that it has the right bytes,
    `checked` if it checks every body itself."""

    number: int
    etag: str
    crc32: str
    proved: bool
    checked: bool


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
    def read(cls, file: FileIO, path: Path, span: tuple[int, int], digest: Hash) -> Body:
        """The bytes of a file from where it stands, hashed.

        Args:
            span: where they begin, and how many they are.

        Raises:
            Differs: the file has no more of them.
        """
        begin, size = span
        crc = 0
        left = size
        data = None
        while left:
            data = file.read(left if size <= MAX_IN_MEMORY else min(left, CHUNK))
            if not data:
                raise Differs("changed")
            digest.update(data)
            crc = zlib.crc32(data, crc)
            left -= len(data)
        in_memory = data if data is not None and len(data) == size else None
        return cls(in_memory, path, begin, size, base64.b64encode(crc.to_bytes(4, "big")).decode())

    def stream(self) -> bytes | FilePart:
        """What boto3 takes as a body."""
        return self.data if self.data is not None else FilePart(self.path, self.begin, self.size)

    def md5(self) -> str:
        """Hex MD5: what a server that knows no checksums gives as the ETag."""
        digest = hashlib.md5(usedforsecurity=False)
        body = self.stream()
        for data in [body] if isinstance(body, bytes) else iter(partial(body.read, CHUNK), b""):
            digest.update(data)
        return digest.hexdigest()


class FilePart(RawIOBase):
    """A stretch of a file as a file of its own."""

    def __init__(self, path: Path, begin: int, size: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._begin = begin
        self._size = size
        self._at = 0

    def __len__(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        data = os.pread(self._file.fileno(), wanted, self._begin + self._at)
        self._at += len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()
