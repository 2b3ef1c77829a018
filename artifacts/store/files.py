"""Files that appear whole or not at all: hash while writing, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifacts.manifest import FileEntry
from configs.errors import DiskFull

CHUNK = 4 << 20
HASH_THREADS = 4  # sha256 releases the GIL; more threads than this wait for the disk


def is_disk_full(error: Exception) -> bool:
    """Whether an error, ours or a library's, means that the file system has no room."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors reports a full disk as its own error type with the errno in the text
    return "No space left on device" in str(error) or "os error 28" in str(error)


@contextmanager
def disk_full_is_an_error(where: str) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT, from us or from a library below us, into DiskFull."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            "no space left on the device",
            where=where,
            hint=(
                "free some space or set LMFLOWS_HOME to a larger disk, then run again: finished"
                " steps are kept"
            ),
        ) from error


def sha256_file(path: Path) -> tuple[int, str]:
    """Size in bytes and hex sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def copy_hashed(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file and hash it on the way, reading it once; fsync. Returns (bytes, hex sha256)."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(CHUNK):
            digest.update(chunk)
            writer.write(chunk)
            size += len(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return size, digest.hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a small file so that a reader, or a kill -9, sees the old content or the new, never a
    part."""
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with disk_full_is_an_error(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the renames and links inside a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_or_symlink(source: Path, target: Path) -> None:
    """Make `target` name the same bytes as `source` without copying: a hard link, or across devices
    a symlink."""
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        # another device, a file of somebody else's, or a file system without hard links
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        os.symlink(source.resolve(), target)


def link_or_copy(source: Path, target: Path) -> None:
    """Like `link_or_symlink`, but `target` outlives the path of `source`: across devices it is a
    copy, read-only.

    So it is if `source` is a link: what a store from elsewhere points to is not the store's, and
    its owner may go on writing to it.
    """
    try:
        if source.is_symlink():
            raise OSError(errno.EXDEV, "a link")
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        copy_hashed(source, target)
        target.chmod(0o444)


def tree_files(folder: Path) -> list[str]:
    """Every file below a folder (links included, also those to folders), as sorted POSIX paths
    relative to it."""
    return sorted(
        path.relative_to(folder).as_posix()
        for base, folders, names in os.walk(folder)
        for path in map(Path(base).joinpath, [*folders, *names])
        if path.is_symlink() or not path.is_dir()
    )


def is_intact(path: Path, entry: FileEntry) -> bool:
    """Whether a file exists and has the size and sha256 of its entry."""
    try:
        return is_plausible(path, entry) and sha256_file(path)[1] == entry.sha256
    except OSError:
        return False


def is_plausible(path: Path, entry: FileEntry) -> bool:
    """Whether there is a file of that size: a store from elsewhere may have a link to a device
    there, which never ends."""
    try:
        facts = path.stat()
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link to itself
            raise
        return False
    return stat.S_ISREG(facts.st_mode) and facts.st_size == entry.size


def rename_folder(source: Path, target: Path) -> bool:
    """Rename a folder; False if something else has the name, other than an empty folder."""
    try:
        os.rename(source, target)
    except OSError as error:
        # the last: a file or a link
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True
