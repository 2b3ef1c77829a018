"""The engine transformers: the reference engine of `tasks.engines.reference`, and its server."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.engines import EngineTransformers
from configs.variants import KvBits
from tasks.engines.protocol import EngineSpec, ServerSpec
from tasks.runner.process import module_command

if TYPE_CHECKING:
    from tasks.engines.reference import ReferenceEngine

LIBRARIES = ("torch", "transformers")


def unavailable() -> str | None:
    """It runs anywhere."""
    return None


def refuses_architecture(architecture: str) -> str | None:
    """It serves what transformers knows, and no more is asked of a model before."""
    return None


def refuses_kv(kv_bits: KvBits, head_dim: int) -> str | None:
    """Its KV cache is never quantized."""
    return None


def refuses_deployment(runtime: str, versions: Mapping[str, str]) -> str | None:
    """Its server is this project's own, in every runtime."""
    return None


def load(spec: EngineSpec) -> ReferenceEngine:
    import torch

    from tasks.engines.reference import ReferenceEngine

    options = spec.engine
    assert isinstance(options, EngineTransformers)
    return ReferenceEngine(
        spec.folder,
        dtype=getattr(torch, options.dtype),
        trust_remote_code=spec.trust_remote_code,
    )


def prepare_server(folder: Path, tp: int) -> None:
    """Nothing to do."""


def server_command(server: ServerSpec) -> list[str]:
    """Its server reads the endpoint's record itself."""
    return module_command("tasks.serving.reference_server", server.record)


def become_server(command: Sequence[str]) -> None:
    os.execv(command[0], list(command))
