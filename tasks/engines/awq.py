"""AWQ `gemm` checkpoints without an AWQ kernel: unpack the 4-bit weights into plain matrices."""

from __future__ import annotations

from collections.abc import Mapping

import torch

# Nibble i of an int32 holds column ORDER[i] of its eight: AutoAWQ's gemm packing, which LMDeploy writes too.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """int32[rows, columns / 8] -> int32[rows, columns] of codes in 0..15."""
    shifts = torch.empty(8, dtype=torch.int32)
    for nibble, column in enumerate(ORDER):
        shifts[column] = 4 * nibble
    return ((packed[:, :, None] >> shifts.to(packed.device)) & 15).flatten(1)


def dequantize(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, group_size: int) -> torch.Tensor:
    """The weight float32[out, in] of one linear layer.

    Args:
        qweight: int32[in, out / 8].
        qzeros: int32[in / group_size, out / 8].
        scales: floating point [in / group_size, out].
    """
    groups, out = scales.shape
    codes = unpack_int4(qweight).view(groups, group_size, out)
    zeros = unpack_int4(qzeros).view(groups, 1, out)
    return ((codes - zeros) * scales.float().view(groups, 1, out)).view(-1, out).T.contiguous()


def dequantize_checkpoint(tensors: Mapping[str, torch.Tensor], group_size: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A state dict with every `qweight`/`qzeros`/`scales` triple replaced by its `weight`, all in `dtype`."""
    plain = {}
    for name, tensor in tensors.items():
        if name.endswith(".qweight"):
            layer = name.removesuffix("qweight")
            weight = dequantize(tensor, tensors[f"{layer}qzeros"], tensors[f"{layer}scales"], group_size)
            plain[f"{layer}weight"] = weight.to(dtype)
        elif not name.endswith((".qzeros", ".scales")):
            plain[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return plain
