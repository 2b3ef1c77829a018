"""Model folders as artifacts, whole and spoilt."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from artifacts.manifest import ModelArtifact
from artifacts.store.local import LocalStore
from configs.sources import LocalSource
from tasks.download import DownloadRequest, download
from tasks.runner.step import Context


def fetch(store: LocalStore, folder: Path) -> ModelArtifact:
    """The fp16 artifact of a model folder."""
    return download(
        DownloadRequest(source=LocalSource(type="local", path=folder)), Context(store)
    ).model


def spoil(model: Path, folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A copy of the small model with one changed tensor."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
