"""Which files of weights are safe to load, and what the header of a safetensors file says."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from configs.errors import SourceError

# the limit of the safetensors library; a GGUF file's first bytes read as 14 GB
MAX_HEADER_BYTES = 100_000_000
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
# Bytes an element of a safetensors dtype takes (F4/F6 sub-byte types are left to the length check
# of the file).
DTYPE_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


def safetensors_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of a safetensors file as {name: (dtype, shape)}, with the file's length checked
    against them.

    Raises:
        SourceError: the file is truncated, padded or not safetensors.
    """
    fix = "download the file again"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
            raise SourceError(
                f"not a safetensors file, or cut off in its header ({size} bytes)",
                where=str(path),
                hint=fix,
            )
        try:
            header = json.loads(file.read(length))
            tensors = {
                name: (item["dtype"], tuple(item["shape"]), item["data_offsets"])
                for name, item in header.items()
                if name != "__metadata__"
            }
            end = max((int(offsets[1]) for _, _, offsets in tensors.values()), default=0)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            RecursionError,
        ) as error:
            raise SourceError(
                f"unreadable safetensors header ({error})", where=str(path), hint=fix
            ) from error
    if size != 8 + length + end:
        raise SourceError(
            f"the header promises {8 + length + end} bytes, the file has {size}: truncated or"
            " damaged",
            where=str(path),
            hint=fix,
        )
    return {name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()}
