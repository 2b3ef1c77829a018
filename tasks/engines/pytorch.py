"""LMDeploy's PyTorch engine: its configuration. It serves more architectures than TurboMind, and
AWQ with other group sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from configs.engines import EnginePytorch
from configs.errors import EngineError
from tasks.engines.protocol import EngineSpec

if TYPE_CHECKING:
    from tasks.serving.endpoints import Endpoint


def require() -> None:
    """Raise EngineError without a CUDA GPU: the engine has other devices, this project has not
    tried them."""
    import torch

    if not torch.cuda.is_available():
        raise EngineError(
            "needs a CUDA GPU, and there is none",
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


@contextlib.contextmanager
def loading(spec: EngineSpec) -> Iterator[None]:
    """Nothing to do while it loads."""
    yield


def prepare_server(endpoint: Endpoint) -> None:
    """Before the server starts in this process: refuse a machine without a GPU."""
    require()
