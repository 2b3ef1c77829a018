"""A damaged safetensors file is found by its length."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from configs.errors import SourceError
from tasks.checkpoints.safetensors import safetensors_header

TENSORS: dict[str, np.ndarray[Any, Any]] = {
    "embed": np.arange(60, dtype=np.float32).reshape(3, 4, 5),
    "norm": np.ones(7, dtype=np.float16),
    "empty": np.zeros((0, 3), np.int64),
}
WHOLE = save(TENSORS, metadata={"format": "pt"})


def header_of(data: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(data)
        file.flush()
        return safetensors_header(Path(file.name))


def with_header(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_a_header_has_the_tensors_that_the_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(WHOLE)
    with safe_open(path, framework="np") as library:
        slices = {name: library.get_slice(name) for name in library.keys()}  # noqa: SIM118 (no mapping)
        expected = {
            name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()
        }
    assert safetensors_header(path) == expected


@given(st.integers(0, len(WHOLE) - 1))
def test_a_safetensors_file_cut_off_anywhere_is_found(length: int) -> None:
    with pytest.raises(SourceError):
        header_of(WHOLE[:length])


@given(st.binary(min_size=1, max_size=100))
def test_garbage_after_a_safetensors_file_is_found(garbage: bytes) -> None:
    with pytest.raises(SourceError, match="truncated or damaged"):
        header_of(WHOLE + garbage)


@given(st.binary(max_size=200))
def test_random_bytes_are_no_safetensors_file(data: bytes) -> None:
    with pytest.raises(SourceError):
        header_of(data)


@pytest.mark.parametrize(
    "data",
    [
        with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}, b"123"),
        with_header({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, b"1234"),
        with_header({"a": {"dtype": "F32", "shape": [1]}}, b"1234"),
        with_header({"a": None}),
        with_header([1]),
        with_header({"a": {}}),
        struct.pack("<Q", 200_000) + b"[" * 200_000,
    ],
    ids=["text offsets", "scalar shape", "no offsets", "null", "list", "nothing", "deep"],
)
def test_a_header_of_the_wrong_shape_is_a_source_error(data: bytes) -> None:
    with pytest.raises(SourceError):
        header_of(data)


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)
    with pytest.raises(SourceError, match="not a safetensors file"):
        safetensors_header(path)
