"""The repack step: an AWQ checkpoint as compressed-tensors `pack-quantized`, in groups of 32 or
128, the same numbers.

LMDeploy's TurboMind serves AWQ in groups of 128 only, but compressed-tensors in groups of 32 as
well. So a model whose sizes are multiples of 32 and not of 128 is quantized to AWQ in groups of 32
and repacked. Codes, zeros and scales stay the same bits; a group is at most cut into equal parts.
Works shard by shard on the tensors, without building the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from artifacts.manifest import ModelArtifact, Parent
from configs.errors import SourceError
from tasks.checkpoints import card, files
from tasks.checkpoints.rewrite import rewrite
from tasks.runner.step import Context, Request, Result, step, versions

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "safetensors")
# lmdeploy/turbomind/converter.py, _SUPPORTED_GROUP_SIZES["compressed-tensors"]
GROUP_SIZES = (32, 128)
QUANTIZE_AGAIN = "quantize it again: repack takes what the quantize step makes"


class RepackRequest(Request):
    model: ModelArtifact
    group_size: int


class RepackResult(Result):
    """The repacked artifact, and its size in bytes on disk."""

    candidate: ModelArtifact
    candidate_bytes: int


@step(libraries=LIBRARIES, revision=2)  # 2: the model card, and the versions
def repack(request: RepackRequest, context: Context) -> RepackResult:
    """Rewrite an AWQ checkpoint in the compressed-tensors format, with the same numbers."""
    from tasks.checkpoints.int4 import Tensors

    source = request.model.path
    group_size = request.group_size
    facts = files.inspect(source)
    config = files.read_config(source)
    old = awq_group_size(config, where=str(source / "config.json"))
    check_group_size(old, group_size)
    check_layers(facts.tensors, old, group_size, where=str(source))
    manifest = context.store.manifest(request.model.digest)
    recipe = manifest.recipe | {
        "format": "compressed-tensors",
        "group_size": group_size,
        "repacked_from": request.model.digest,
        "repacked_with": versions((*LIBRARIES, "huggingface_hub")),
    }
    new = config | {
        "quantization_config": quantization_config(group_size, plain_matrices(facts.tensors))
    }
    readme = card.card(
        card.base_of_quantized(source, manifest), new, recipe, files.companions(source)
    )
    with context.store.staging() as staging:
        tensors = Tensors(source)
        rewrite(
            source,
            staging,
            new,
            readme,
            lambda names: repacked_shard(tensors, names, group_size),
            context.progress,
        )
        context.progress(0.95, "hashing")
        candidate = context.store.commit(
            staging,
            "w4a16",
            recipe=recipe,
            parents=[Parent(role="quantized", digest=request.model.digest)],
        )
    return RepackResult(
        candidate=candidate, candidate_bytes=context.store.manifest(candidate.digest).size
    )


def awq_group_size(config: Mapping[str, Any], *, where: str) -> int:
    """The group size of an AWQ `gemm` checkpoint, from its config.json.

    Raises:
        SourceError: the config says that it is something else.
    """
    found = config.get("quantization_config") or {}
    expected = {"quant_method": "awq", "version": "gemm", "bits": 4, "zero_point": True}
    group_size = found.get("group_size")
    if expected.items() <= found.items() and isinstance(group_size, int) and group_size > 0:
        return group_size
    what = f"its quantization_config is {found}" if found else "it is not quantized"
    raise SourceError(f"not an AWQ gemm checkpoint: {what}", where=where, hint=QUANTIZE_AGAIN)


def check_group_size(old: int, new: int) -> None:
    """Raise SourceError unless TurboMind serves the new group size, and each old group can be cut
    into new ones."""
    if new not in GROUP_SIZES:
        raise SourceError(
            f"{new} is not a group size that TurboMind serves",
            where="group_size",
            hint="choose 32 or 128",
        )
    if old % new:
        fits = [size for size in GROUP_SIZES if old % size == 0]
        raise SourceError(
            f"groups of {old} cannot be cut into groups of {new}",
            where="group_size",
            hint=f"choose {fits[-1]}" if fits else "quantize it with group size 32 or 128",
        )


def check_layers(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], old: int, new: int, *, where: str
) -> None:
    """Check every AWQ layer by its {name: (dtype, shape)}, before any work.

    Raises:
        SourceError: there is none; or the inputs of one are not a multiple of the new group size,
            or its parts do not fit each other.
    """
    layers = sorted(name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight"))
    if not layers:
        raise SourceError(
            "not an AWQ gemm checkpoint: no tensor is named qweight",
            where=where,
            hint=QUANTIZE_AGAIN,
        )
    for layer in layers:
        dtype, shape = tensors[f"{layer}.qweight"]
        inputs, words = shape if len(shape) == 2 else (0, 0)
        if inputs % new:
            raise SourceError(
                f"{layer} has {inputs} inputs, which {new} does not divide",
                where=where,
                hint=(
                    "set source.pad_to_multiple to a multiple of the group size, and quantize again"
                ),
            )
        groups = inputs // old
        parts = (
            dtype,
            groups * old,
            tensors.get(f"{layer}.qzeros"),
            tensors.get(f"{layer}.scales", ("", ()))[1],
        )
        if parts != ("I32", inputs, ("I32", (groups, words)), (groups, words * 8)):
            raise SourceError(
                f"{layer}: qweight, qzeros and scales do not fit each other in groups of {old}",
                where=where,
                hint=QUANTIZE_AGAIN,
            )


def repacked_shard(
    tensors: Mapping[str, torch.Tensor], names: list[str], group_size: int
) -> dict[str, torch.Tensor]:
    """The tensors of one new shard: a layer's are all where its `qweight` was, plain ones stay
    where they were.

    Args:
        tensors: those of the whole AWQ checkpoint.
        names: those of the old shard.
    """
    from tasks.checkpoints.int4 import Int4Weight

    shard: dict[str, torch.Tensor] = {}
    for name in names:
        layer, _, part = name.rpartition(".")
        if part == "qweight":
            weight = Int4Weight.from_awq(
                tensors[name], tensors[f"{layer}.qzeros"], tensors[f"{layer}.scales"]
            )
            shard |= {
                f"{layer}.{kind}": tensor
                for kind, tensor in weight.regroup(group_size).to_packed().items()
            }
        elif part not in ("qzeros", "scales") or f"{layer}.qweight" not in tensors:
            shard[name] = tensors[name]
    return shard


def quantization_config(group_size: int, ignore: list[str]) -> dict[str, Any]:
    """config.json's `quantization_config`, in the full form of llm-compressor: readers disagree on
    which parts they need."""
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": group_size,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "format": "pack-quantized",
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def plain_matrices(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[str]:
    """The modules whose weight is a matrix and not quantized, by their {name: (dtype, shape)};
    `lm_head` even if it is tied."""
    return sorted(
        {
            name.removesuffix(".weight")
            for name, (_, shape) in tensors.items()
            if name.endswith(".weight") and len(shape) == 2
        }
        | {"lm_head"}
    )
