"""Which kind of store is at a location."""

from __future__ import annotations

from pathlib import Path

from artifacts.store.local import LocalStore
from artifacts.store.protocol import Store
from configs.location import S3, parse_s3


def open_store(location: str) -> Store:
    """The store at a location (`configs.location`). Nothing is read or asked yet."""
    if location.startswith(S3):
        # boto3 takes half a second, and most commands need none
        from artifacts.store.s3.store import S3Store

        return S3Store(parse_s3(location))

    return LocalStore(Path(location))
