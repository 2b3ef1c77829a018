"""Two int4 formats: read as their own libraries read them, and the same numbers from both."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import lmdeploy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tasks.checkpoints.int4 import (
    Int4Weight,
    Tensors,
    dequantize_checkpoint,
    is_readable,
    pack,
    unpack,
    unpack_awq,
)
from tasks.repack import quantization_config
from tests.support.int4_layers import awq_layer, awq_packed, same_bits

AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128, "zero_point": True}


@st.composite
def layers(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], int, int]:
    """An AWQ layer, its group size, and one that it can be repacked to."""
    old, new = draw(st.sampled_from([(32, 32), (64, 32), (128, 32), (128, 128), (256, 128)]))
    layer = awq_layer(
        8 * draw(st.integers(1, 6)),
        draw(st.integers(1, 4)),
        old,
        seed=draw(st.integers(0, 2**31)),
        dtype=draw(st.sampled_from([torch.float16, torch.bfloat16])),
    )
    return layer, old, new


@given(layers())
@settings(max_examples=60, deadline=None)
def test_a_repacked_weight_is_the_same_in_every_bit(
    drawn: tuple[dict[str, torch.Tensor], int, int],
) -> None:
    layer, _, new = drawn
    weight = Int4Weight.from_awq(**layer)
    parts = weight.regroup(new).to_packed()
    shape = parts.pop("weight_shape")
    assert (
        shape.tolist() == list(weight.codes.shape)
        and parts["weight_scale"].shape[1] * new == shape[1]
    )
    assert parts["weight_scale"].dtype == layer["scales"].dtype
    assert same_bits(Int4Weight.from_packed(**parts).dequantize(), weight.dequantize())


@given(layers())
@settings(max_examples=30, deadline=None)
def test_awq_means_code_minus_zero_times_scale(
    drawn: tuple[dict[str, torch.Tensor], int, int],
) -> None:
    """Computed without the module under test, from the layout that LMDeploy documents."""
    layer, group_size, _ = drawn

    def fields(packed: torch.Tensor) -> np.ndarray[Any, Any]:
        order = [0, 4, 1, 5, 2, 6, 3, 7]
        return np.stack(
            [packed.numpy().view(np.uint32) >> 4 * nibble & 15 for nibble in order], axis=-1
        ).reshape(packed.shape[0], -1)

    codes, zeros = (
        fields(layer["qweight"]).astype(np.float32),
        fields(layer["qzeros"]).astype(np.float32),
    )
    expected = (codes - zeros.repeat(group_size, axis=0)) * layer["scales"].float().numpy().repeat(
        group_size, axis=0
    )
    assert np.array_equal(Int4Weight.from_awq(**layer).dequantize().numpy(), expected.T)


def test_packing_agrees_with_the_compressed_tensors_library() -> None:
    """Recorded from `pack_to_int32(codes - 8, 4)` and `pack_to_int32(zeros - 8, 4, packed_dim=0)`
    of compressed-tensors 0.20.0."""
    out, inputs = torch.meshgrid(torch.arange(16), torch.arange(64), indexing="ij")
    codes = ((out * 7 + inputs * 3 + inputs // 8) % 16).to(torch.uint8)
    zeros = ((torch.arange(16)[:, None] * 5 + torch.arange(2) * 9 + 3) % 16).to(torch.uint8)
    parts = Int4Weight(codes, zeros, torch.ones(16, 2)).to_packed()
    assert parts["weight_packed"][:3].tolist() == [
        [
            1392285232,
            -343593015,
            1948170322,
            229065195,
            -1775183244,
            801727245,
            -1202520938,
            1105954095,
        ],
        [
            -916255321,
            1392285232,
            -343593015,
            1948170322,
            229065195,
            -1775183244,
            801727245,
            -1202520938,
        ],
        [
            819622942,
            -916255321,
            1392285232,
            -343593015,
            1948170322,
            229065195,
            -1775183244,
            801727245,
        ],
    ]
    assert parts["weight_zero_point"].tolist() == [
        [1640443267, -95373796],
        [-380656373, 1926774420],
    ]
    assert parts["weight_shape"].tolist() == [16, 64] and parts["weight_shape"].dtype == torch.int64


@pytest.fixture
def turbomind(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """TurboMind's own checkpoint reader, without its native part."""
    package = ModuleType("turbomind_without_native")
    package.__path__ = [str(Path(lmdeploy.__file__).parent / "turbomind")]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, "_turbomind", MagicMock())
    yield importlib.import_module(f"{package.__name__}.weight_format")
    for name in [name for name in sys.modules if name.startswith(f"{package.__name__}.")]:
        del sys.modules[name]


@pytest.mark.parametrize(("old", "new"), [(128, 128), (128, 32), (32, 32)])
def test_turbomind_reads_the_same_weight_from_both(
    turbomind: ModuleType, old: int, new: int
) -> None:
    layer = awq_layer(24, 3, old)
    awq, packed = turbomind.AWQFormat(block_in=old), turbomind.CompressedTensorFormat(block_in=new)
    found = {f".{part}": tensor for part, tensor in layer.items()}
    repacked = {
        f".{part}": tensor
        for part, tensor in Int4Weight.from_awq(**layer).regroup(new).to_packed().items()
    }
    assert awq.accepts(found) and packed.accepts(repacked)
    before = {
        kind: awq.normalize(found[suffix], kind)
        for suffix, kind in awq.suffix_map.items()
        if suffix in found
    }
    after = {
        kind: packed.normalize(repacked[suffix], kind)
        for suffix, kind in packed.suffix_map.items()
        if suffix in repacked
    }
    assert same_bits(before["weight"], after["weight"])
    assert all(
        same_bits(before[kind].repeat_interleave(old // new, dim=0), after[kind])
        for kind in ("scales", "zeros")
    )


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_unpacking_is_the_inverse_of_packing(rows: int, words: int, seed: int) -> None:
    codes = torch.randint(16, (rows, words * 8), generator=torch.Generator().manual_seed(seed)).to(
        torch.uint8
    )
    assert torch.equal(unpack(pack(codes)), codes) and pack(codes).shape == (rows, words)
    assert torch.equal(unpack_awq(awq_packed(codes)), codes.T)


def test_small_groups_are_not_joined_to_large_ones() -> None:
    with pytest.raises(ValueError, match="groups of 32 cannot be cut into groups of 128"):
        Int4Weight.from_awq(**awq_layer(8, 4, 32)).regroup(128)


@pytest.mark.parametrize("kind", ["awq", "packed"])
def test_a_layer_may_lie_in_two_shards(tmp_path: Path, kind: str) -> None:
    layer = awq_layer(16, 2, 32)
    weight = Int4Weight.from_awq(**layer)
    parts = layer if kind == "awq" else weight.to_packed()
    names = sorted(parts)
    save_file(
        {f"a.{name}": parts[name] for name in names[:1]}
        | {"norm.weight": torch.ones(4, dtype=torch.float16)},
        tmp_path / "1.safetensors",
    )
    save_file(
        {f"a.{name}": parts[name] for name in names[1:]}
        | {"a.bias": torch.ones(16), "ids": torch.arange(3)},
        tmp_path / "2.safetensors",
    )
    tensors = Tensors(tmp_path)
    plain = dequantize_checkpoint(tensors, torch.float32)
    assert len(tensors) == len(names) + 3
    assert plain.keys() == {"a.weight", "a.bias", "norm.weight", "ids"}
    assert same_bits(plain["a.weight"], weight.dequantize())
    assert plain["norm.weight"].dtype == torch.float32 and plain["ids"].dtype == torch.int64


@pytest.mark.parametrize(
    ("changed", "readable"),
    [
        (AWQ, True),
        (AWQ | {"version": "gemv"}, False),
        (AWQ | {"bits": 8}, False),
        (AWQ | {"quant_method": "gptq"}, False),
        (quantization_config(32, []), True),
        (quantization_config(32, []) | {"config_groups": {}}, False),
        ({}, False),
    ],
)
def test_only_what_can_be_unpacked_is_called_readable(
    changed: dict[str, Any], readable: bool
) -> None:
    assert is_readable(changed) is readable


@pytest.mark.parametrize(
    ("key", "value"), [("num_bits", 8), ("type", "float"), ("symmetric", True)]
)
def test_other_weights_in_the_same_container_are_not_readable(key: str, value: object) -> None:
    config = quantization_config(32, [])
    config["config_groups"]["group_0"]["weights"][key] = value
    assert not is_readable(config)


def test_another_container_is_not_readable() -> None:
    config = quantization_config(32, [])
    config["config_groups"]["group_0"]["format"] = "marlin-24"
    assert not is_readable(config)
