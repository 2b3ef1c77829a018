"""Int4 checkpoints without a kernel: AWQ `gemm` and compressed-tensors `pack-quantized`, read and
unpacked.

Both say the same: a code of 4 bits per weight, a zero point and a scale per group of inputs, and
the weight is `(code - zero) * scale`. They differ in the axis along which eight codes share an
int32, and in the order of the eight. `Int4Weight` is what they have in common. Knows nothing of
what a model computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tasks.checkpoints import files

# Nibble i of an int32 holds column ORDER[i] of its eight: AutoAWQ's gemm packing, which LMDeploy
# writes too.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# the tensors of a layer in either format; compressed-tensors has the shape of the weight, too
AWQ_PARTS = ("qweight", "qzeros", "scales")
PACKED_PARTS = ("weight_packed", "weight_zero_point", "weight_scale")


@dataclass(frozen=True, eq=False)
class Int4Weight:
    """The weight of one linear layer.

    Attributes:
        codes: uint8[out, in], 0 to 15.
        zeros: uint8[out, groups], 0 to 15.
        scales: floating point [out, groups].
    """

    codes: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def from_awq(
        cls, qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor
    ) -> Int4Weight:
        """From int32[in, out / 8], int32[groups, out / 8] and [groups, out]."""
        return cls(unpack_awq(qweight), unpack_awq(qzeros), scales.T)

    @classmethod
    def from_packed(
        cls,
        weight_packed: torch.Tensor,
        weight_zero_point: torch.Tensor,
        weight_scale: torch.Tensor,
    ) -> Int4Weight:
        """From int32[out, in / 8], int32[out / 8, groups] and [out, groups]."""
        return cls(unpack(weight_packed), unpack(weight_zero_point.T).T, weight_scale)

    def to_packed(self) -> dict[str, torch.Tensor]:
        """The tensors of a `pack-quantized` layer, by the last part of their names.

        The format means a code as a signed integer, code - 8, and stores it plus 8: the same four
        bits. Weights are packed along the inputs, zero points along the outputs.
        """
        return {
            "weight_packed": pack(self.codes),
            "weight_zero_point": pack(self.zeros.T).T.contiguous(),
            "weight_scale": self.scales.contiguous(),
            "weight_shape": torch.tensor(self.codes.shape),
        }

    def regroup(self, group_size: int) -> Int4Weight:
        """The same weight in smaller groups, each with the zero and scale of the one that it was a
        part of.

        Raises:
            ValueError: the new size does not divide the old one.
        """
        old = self.codes.shape[1] // self.scales.shape[1]
        if old % group_size:
            raise ValueError(f"groups of {old} cannot be cut into groups of {group_size}")
        parts = old // group_size
        return Int4Weight(
            self.codes,
            self.zeros.repeat_interleave(parts, dim=1),
            self.scales.repeat_interleave(parts, dim=1),
        )

    def dequantize(self) -> torch.Tensor:
        """float32[out, in], the same bits from either format and after `regroup`."""
        out, groups = self.scales.shape
        steps = self.codes.reshape(out, groups, -1).float() - self.zeros[:, :, None].float()
        return (steps * self.scales[:, :, None].float()).flatten(1)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """int32[rows, columns / 8] -> uint8[rows, columns] of codes in 0..15, the lowest nibble first
    (on a little-endian machine)."""
    pairs = _rows(packed).view(torch.uint8)
    return torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)


def pack(codes: torch.Tensor) -> torch.Tensor:
    """uint8[rows, columns] of codes in 0..15 -> int32[rows, columns / 8]: the inverse of
    `unpack`."""
    return _rows(codes[:, 0::2] | codes[:, 1::2] << 4).view(torch.int32)


def unpack_awq(packed: torch.Tensor) -> torch.Tensor:
    """int32[rows, columns / 8] in the order of AWQ's `gemm` -> uint8[columns, rows] of codes in
    0..15, transposed."""
    # transposed while eight codes are one number
    pairs = _rows(packed.T).view(torch.uint8).view(*packed.T.shape, 4)
    nibbles = [half for byte in pairs.unbind(-1) for half in (byte & 15, byte >> 4)]
    return torch.stack([nibbles[ORDER.index(column)] for column in range(8)], dim=1).flatten(0, 1)


def _rows(matrix: torch.Tensor) -> torch.Tensor:
    """A copy that can be viewed as another integer type; `contiguous` leaves a matrix of one row or
    column as it is."""
    return matrix.clone(memory_format=torch.contiguous_format)


class Tensors(Mapping[str, torch.Tensor]):
    """The tensors of a model folder, each read when it is asked for: the parts of one layer may lie
    in different shards.

    Raises:
        SourceError: as `model_files.weight_files`.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}
        for name in files.weight_files(folder):
            file: Any = safe_open(folder / name, framework="pt")
            self._files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def is_readable(quantization: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` promises what `dequantize_checkpoint` can unpack: 4 bits with
    zero points."""
    if quantization.get("quant_method") == "awq":
        return quantization.get("version") == "gemm" and quantization.get("bits") == 4
    groups = (quantization.get("config_groups") or {}).values()
    return (
        quantization.get("quant_method") == "compressed-tensors"
        and bool(groups)
        and all(
            group.get("format", quantization.get("format")) == "pack-quantized"
            and group["weights"]["num_bits"] == 4
            and group["weights"]["type"] == "int"
            and group["weights"]["symmetric"] is False
            for group in groups
        )
    )


def dequantize_checkpoint(
    tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """A state dict with the parts of every int4 layer, of either format, replaced by its `weight`,
    all in `dtype`."""
    plain = {}
    for name in tensors:
        layer, _, part = name.rpartition(".")
        if part == "qweight":
            weight = Int4Weight.from_awq(*(tensors[f"{layer}.{other}"] for other in AWQ_PARTS))
            plain[f"{layer}.weight"] = weight.dequantize().to(dtype)
        elif part == "weight_packed":
            packed = (tensors[f"{layer}.{other}"] for other in PACKED_PARTS)
            plain[f"{layer}.weight"] = Int4Weight.from_packed(*packed).dequantize().to(dtype)
        elif part not in (*AWQ_PARTS, *PACKED_PARTS, "weight_shape"):
            tensor = tensors[name]
            plain[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return plain
