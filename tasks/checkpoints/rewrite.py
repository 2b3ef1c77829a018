"""A checkpoint rewritten shard by shard: other tensors under the files, the index and the
companions of the one before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.callbacks import Progress
from tasks.checkpoints import files
from tasks.checkpoints.hub_card import CARD, card_files
from tasks.checkpoints.safetensors import safetensors_header

if TYPE_CHECKING:
    import torch

    from artifacts.store.staging import Staging


def rewrite(
    source: Path,
    staging: Staging,
    config: Mapping[str, Any],
    readme: str,
    shard_of: Callable[[list[str]], dict[str, torch.Tensor]],
    progress: Progress,
) -> None:
    """Write a checkpoint into `staging`, with the tokenizer and all that travels with the weights.

    Args:
        config: the new config.json.
        readme: the new model card.
        shard_of: the new shard's tensors, from the names of the old shard's.
    """
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    tensor_bytes = 0
    weights = files.weight_files(source)
    for number, name in enumerate(weights):
        progress(number / len(weights), f"writing {name}")
        shard = shard_of(list(safetensors_header(source / name)))
        save_file(shard, staging.target(name), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
        tensor_bytes += sum(tensor.nbytes for tensor in shard.values())
    names = files.companions(source)
    for name in names:
        if name not in ("config.json", *card_files(names)):
            staging.copy(source / name, name)
    staging.write(CARD, readme.encode())
    if (source / files.INDEX).exists():
        index = {"metadata": {"total_size": tensor_bytes}, "weight_map": weight_map}
        staging.write(files.INDEX, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
    files.write_config(staging.path, config)
