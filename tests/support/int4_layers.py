"""Layers of random int4 codes, and when two of them are the same."""

from __future__ import annotations

import torch


def awq_packed(codes: torch.Tensor) -> torch.Tensor:
    """Codes [rows, columns] as AWQ's gemm stores them, one bit field after the other."""
    packed = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int32)
    for nibble, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        packed |= codes[:, column::8].int() << (4 * nibble)
    return packed


def awq_layer(
    out: int, groups: int, group_size: int, *, seed: int = 0, dtype: torch.dtype = torch.float16
) -> dict[str, torch.Tensor]:
    """A random layer in the layout of LMDeploy's auto_awq, with every code, signs in the scales,
    and a zero scale."""
    rng = torch.Generator().manual_seed(seed)
    scales = torch.randn(groups, out, generator=rng).to(dtype)
    scales[0, 0] = 0
    return {
        "qweight": awq_packed(torch.randint(16, (groups * group_size, out), generator=rng)),
        "qzeros": awq_packed(torch.randint(16, (groups, out), generator=rng)),
        "scales": scales,
    }


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equal in every bit, the sign of a zero included."""
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))
    )
