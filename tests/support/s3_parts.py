"""What the tests of the S3 store share: an artifact with a file of six parts, and a store that asks
for small parts."""

from __future__ import annotations

import random

from artifacts.manifest import ModelArtifact
from artifacts.store.local import LocalStore
from artifacts.store.s3.store import S3Store
from configs.location import parse_s3
from tests.support.s3_server import SMALL

PART = SMALL.part_bytes
LARGE = random.Random(0).randbytes(5 * PART + 1234)  # six parts
CONTENT = {
    "config.json": b"{}",
    "copy.json": b"{}",
    "empty": b"",
    "weights/large": LARGE,
    "weights/small": random.Random(1).randbytes(50_000),
}
DISTINCT = sum(len(data) for data in set(CONTENT.values()))


def at(location: str) -> S3Store:
    return S3Store(parse_s3(location), SMALL)


def commit(store: LocalStore, content: dict[str, bytes] = CONTENT) -> ModelArtifact:
    with store.staging() as staging:
        for name, data in content.items():
            staging.write(name, data)
        return store.commit(staging, "fp16")


def files_of(artifact: ModelArtifact) -> dict[str, bytes]:
    return {
        path.relative_to(artifact.path).as_posix(): path.read_bytes()
        for path in artifact.path.rglob("*")
        if path.is_file()
    }
