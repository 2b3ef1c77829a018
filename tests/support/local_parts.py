"""What the tests of the local store share: an artifact in a folder, and damage to its files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from artifacts.manifest import ModelArtifact
from artifacts.store.local import LocalStore

CONTENT = {
    "config.json": b"{}",
    "weights/a.safetensors": b"a" * 5000,
    "weights/b.safetensors": b"b" * 5000,
}


def commit(store: LocalStore, content: dict[str, bytes] = CONTENT) -> ModelArtifact:
    with store.staging() as staging:
        for name, data in content.items():
            staging.write(name, data)
        return store.commit(staging, "fp16")


def borrow(store: LocalStore, folder: Path) -> ModelArtifact:
    with store.staging() as staging:
        for path in folder.iterdir():
            staging.borrow(path, path.name)
        return store.commit(staging, "fp16")


def blob_of(store: LocalStore, name: str) -> Path:
    return store.blob(hashlib.sha256(CONTENT[name]).hexdigest())


def flip_a_byte(path: Path) -> None:
    """In place, with size and times as before: only a hash can tell."""
    times, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace(path: Path, data: bytes) -> None:
    """A new file of that name: other links to the old one keep their content."""
    path.unlink()
    path.write_bytes(data)


def tmp_of(store: LocalStore) -> list[Path]:
    return list((store.root / "tmp").iterdir())
