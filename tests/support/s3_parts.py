"""What the tests of the S3 store share: an artifact with a file of six parts, and a store that asks
for small parts."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from artifacts.manifest import ModelArtifact
from artifacts.store.layout import blob_key, manifest_key
from artifacts.store.local import LocalStore
from artifacts.store.protocol import Store
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


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def overwrite(store: Store, name: str, data: bytes | None, what: str = "blobs") -> None:
    """What stands in a store in place of a blob or a manifest; None removes it."""
    if isinstance(store, LocalStore):
        path = store.blob(name) if what == "blobs" else store.manifest_path(name)
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        return
    assert isinstance(store, S3Store)
    bucket = store.bucket
    key = bucket.key(blob_key(name) if what == "blobs" else manifest_key(name))
    if data is None:
        bucket.client.delete_object(Bucket=bucket.name, Key=key)
    else:
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=data)


def nothing_is_visible(store: Store) -> bool:
    return store.digests() == []


def begun(store: S3Store) -> tuple[Any, dict[str, Any]]:
    """A client, and what names an upload of the large blob that somebody has begun with it."""
    client = store.bucket.client
    where = {"Bucket": store.bucket.name, "Key": store.bucket.key(blob_key(sha256(LARGE)))}
    answer = client.create_multipart_upload(Bucket=where["Bucket"], Key=where["Key"])
    return client, where | {"UploadId": answer["UploadId"]}
