"""The variants that a model is served in: the format of its weights, and the bits of its KV
cache."""

from __future__ import annotations

from typing import Literal

Variant = Literal["fp16", "fp16-kv8", "fp16-kv4", "w4a16", "w4a16-kv8", "w4a16-kv4"]
KvBits = Literal[0, 4, 8]  # LMDeploy's quant_policy: 0 keeps the KV cache in 16 bit
KV_BITS: dict[str, KvBits] = {"": 0, "4": 4, "8": 8}


def weights_and_kv(variant: Variant) -> tuple[Literal["fp16", "w4a16"], KvBits]:
    """A variant's weight format and the bits of its KV cache."""
    weights, _, kv = variant.partition("-kv")
    return "fp16" if weights == "fp16" else "w4a16", KV_BITS[kv]
