"""How a store is laid out, in a folder and below an S3 prefix alike.

    blobs/sha256/<hex>              a file's bytes, once
    manifests/sha256/<hex>.json     canonical JSON; the hex is the artifact's digest
    refs/<model>/<stage>.json       what a stage points to      (artifacts.registry.refs)
    signatures/<digest>/<hex>.json  who has signed what         (artifacts.store.signatures)
    serving/<machine>/...           who serves what             (artifacts.registry.serving)

A folder also has

    trees/<hex>/                    an artifact as a folder that a library can load, of links to the
                                    blobs                       (artifacts.store.trees)
    tmp/<random>/                   what is being written       (artifacts.store.scratch)
    .lock                           who writes or collects      (artifacts.store.locks)

and an S3 prefix

    gc.json                         who collects                (artifacts.store.s3.lease)
    probes/<random>                 a moment's test of conditional writes
                                                                (artifacts.store.s3.objects)
"""

from __future__ import annotations

from typing import Literal

What = Literal["manifests", "blobs"]


def blob_key(sha256: str) -> str:
    """The key of the blob with that hex sha256."""
    return f"blobs/sha256/{sha256}"


def manifest_key(digest: str) -> str:
    """The key of the manifest of the artifact with that digest."""
    return f"manifests/sha256/{digest}.json"


def key_of(what: What, name: str) -> str:
    """The key of a manifest or a blob."""
    return manifest_key(name) if what == "manifests" else blob_key(name)


def folder_of(what: What) -> str:
    """What the keys of all manifests or all blobs start with."""
    return f"{what}/sha256/"


def name_of(what: What, key: str) -> str | None:
    """The hex sha256 of a manifest or blob of that key; None if the key is of something else, such
    as what is still being written."""
    name = key.rpartition("/")[2]
    if what == "manifests":
        name = name.removesuffix(".json")
    return name if len(name) == 64 else None
