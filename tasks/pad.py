"""The pad step: zero-pad a llama-type model so that a group size fits, without changing what it
computes.

With hidden size h padded to H, every RMSNorm divides by a root mean square that is smaller by
sqrt(h/H); scaling its weight by sqrt(h/H) and its epsilon by h/H undoes that exactly. Padded heads
and MLP channels have zero weights on both sides. Works file by file on the tensors, without
building the model.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.manifest import ModelArtifact, Parent
from configs.errors import SourceError
from tasks.checkpoints import files
from tasks.runner.step import Context, Request, Result, step, versions

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "safetensors")
# Pre-norm decoders with RMSNorm, rotary attention over whole heads and a gated MLP, and no norm
# inside the heads.
PADDABLE = ("llama", "mistral", "qwen2")


class PadRequest(Request):
    model: ModelArtifact
    multiple: int
    timeout_minutes: float = 120.0

    @property
    def limit_minutes(self) -> float:
        return self.timeout_minutes


class PadResult(Result):
    model: ModelArtifact


@step(libraries=LIBRARIES, revision=2)  # 2: the versions
def pad(request: PadRequest, context: Context) -> PadResult:
    """Zero-pad the model's dimensions to a multiple; the function it computes stays the same."""
    from safetensors.torch import load_file, save_file

    source = request.model.path
    old = files.read_config(source)
    new = padded_config(old, request.multiple, where=str(source))
    weights = files.weight_files(source)
    with context.store.staging() as staging:
        for number, name in enumerate(weights):
            context.progress(number / len(weights), f"padding {name}")
            tensors = {
                key: pad_tensor(key, tensor, old, new)
                for key, tensor in load_file(source / name).items()
            }
            save_file(tensors, staging.target(name), metadata={"format": "pt"})
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source).as_posix()
            if path.is_file() and name not in (*weights, files.INDEX, "config.json"):
                staging.copy(path, name)
        if (source / files.INDEX).exists():
            staging.write(files.INDEX, _index(source / files.INDEX, staging.path, weights))
        files.write_config(staging.path, new)
        recipe = context.store.manifest(request.model.digest).recipe | {
            "padded_to_multiple": request.multiple,
            "padded_with": versions(LIBRARIES),
        }
        artifact = context.store.commit(
            staging,
            "fp16",
            parents=[Parent(role="model", digest=request.model.digest)],
            recipe=recipe,
        )
    return PadResult(model=artifact)


def padded_config(config: dict[str, Any], multiple: int, *, where: str) -> dict[str, Any]:
    """config.json of the padded model: hidden and MLP size, and heads added in whole groups, until
    all divide."""
    if config.get("model_type") not in PADDABLE:
        raise SourceError(
            f"cannot pad a model of type {config.get('model_type')!r}",
            where=f"{where}: source.pad_to_multiple",
            hint=(
                f"padding works for {', '.join(PADDABLE)}; remove pad_to_multiple and choose a"
                " group size that fits"
            ),
        )
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    group = heads // kv_heads
    while kv_heads * group * head_dim % multiple:
        kv_heads += 1
    wide = _round_up(hidden, multiple)
    return config | {
        "hidden_size": wide,
        "intermediate_size": _round_up(config["intermediate_size"], multiple),
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": config["rms_norm_eps"] * hidden / wide,
    }


def pad_tensor(
    name: str, tensor: torch.Tensor, old: dict[str, Any], new: dict[str, Any]
) -> torch.Tensor:
    """One tensor of the padded model: the old values in the corner of zeros; norm weights scaled by
    sqrt(h/H)."""
    from torch.nn.functional import pad as with_zeros

    hidden, wide = old["hidden_size"], new["hidden_size"]
    if name.endswith("norm.weight"):
        scaled = (tensor.float() * math.sqrt(hidden / wide)).to(tensor.dtype)
        return with_zeros(scaled, (0, wide - hidden))
    head_dim = new["head_dim"]
    queries, keys = new["num_attention_heads"] * head_dim, new["num_key_value_heads"] * head_dim
    outputs = {
        "q_proj": queries,
        "k_proj": keys,
        "v_proj": keys,
        "o_proj": wide,
        "gate_proj": new["intermediate_size"],
        "up_proj": new["intermediate_size"],
        "down_proj": wide,
    }
    inputs = {"o_proj": queries, "down_proj": new["intermediate_size"]}
    layer = name.split(".")[-2]
    rows = outputs.get(layer, tensor.shape[0]) - tensor.shape[0]
    if tensor.dim() == 1:  # a bias
        return with_zeros(tensor, (0, rows))
    columns = inputs.get(layer, wide) - tensor.shape[1]
    return with_zeros(tensor, (0, columns, 0, rows))


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _index(index: Path, folder: Path, weights: list[str]) -> bytes:
    """The index of the padded shards: the same map, the new total."""
    values = json.loads(index.read_text())
    values["metadata"] = {"total_size": sum((folder / name).stat().st_size for name in weights)}
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
