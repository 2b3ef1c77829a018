"""LMDeploy's PyTorch engine: it serves more architectures than TurboMind, and AWQ with other group
sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.engines import EnginePytorch
from configs.errors import EngineError
from configs.variants import KvBits
from tasks.engines import lmdeploy
from tasks.engines.protocol import Engine, EngineSpec

LIBRARIES = lmdeploy.LIBRARIES
refuses_deployment = lmdeploy.refuses_deployment
server_command = lmdeploy.server_command
become_server = lmdeploy.become_server


def unavailable() -> str | None:
    """The engine has other devices than CUDA; this project has not tried them."""
    import torch

    return None if torch.cuda.is_available() else "needs a CUDA GPU, and there is none"


def refuses_architecture(architecture: str) -> str | None:
    """What it does not serve, it says itself when it loads."""
    return None


def refuses_kv(kv_bits: KvBits, head_dim: int) -> str | None:
    """It has no known limit."""
    return None


def load(spec: EngineSpec) -> Engine:
    require()
    return lmdeploy.LmdeployEngine(spec, config(spec))


def prepare_server(folder: Path, tp: int) -> None:
    require()


def require() -> None:
    """Raise EngineError without a CUDA GPU."""
    problem = unavailable()
    if problem is not None:
        raise EngineError(
            problem,
            where="engine pytorch",
            hint="run on a GPU worker, or set engine.name: transformers",
        )


def config(spec: EngineSpec) -> Any:
    """LMDeploy's PytorchEngineConfig for a spec."""
    from lmdeploy import PytorchEngineConfig

    options = spec.engine
    assert isinstance(options, EnginePytorch)
    return PytorchEngineConfig(
        tp=options.tp,
        session_len=options.session_len,
        cache_max_entry_count=options.cache_max_entry_count,
        quant_policy=spec.kv_bits,
    )
