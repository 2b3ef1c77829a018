"""The parts of a file are as many and as large as servers and memory take."""

from __future__ import annotations

import pytest

from artifacts.store.local import LocalStore
from artifacts.store.s3 import parts
from artifacts.store.s3.parts import MAX_PARTS, part_bytes
from artifacts.store.s3.store import S3Store
from tests.support.s3_parts import (
    PART,
    commit,
)


@pytest.mark.parametrize(
    "size",
    [
        0,
        1,
        16 << 20,
        (16 << 20) * MAX_PARTS,
        (16 << 20) * MAX_PARTS + 1,
        5 << 40,
        50_000_000_000_000,
    ],
)
def test_no_file_has_more_than_ten_thousand_parts(size: int) -> None:
    part = part_bytes(size, 16 << 20)
    assert part >= 16 << 20
    assert part <= 5 << 30
    assert -(-size // part) <= MAX_PARTS


def test_parts_too_large_for_memory_are_sent_from_the_file(
    s3: S3Store, source: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MAX_IN_MEMORY", PART // 2)
    monkeypatch.setattr(parts, "CHUNK", 10_000)
    digest = commit(source).digest
    s3.push(source, digest)
    assert s3.verify(digest) == []
