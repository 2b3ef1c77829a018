"""The TurboMind engine: its configuration, its server's words, and its GEMM tuning kept between
starts."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.manifest import canonical_json
from configs import paths
from configs.engines import EngineTurbomind
from configs.errors import EngineError
from tasks.checkpoints import files
from tasks.engines.protocol import EngineSpec
from tasks.machine import gpus

if TYPE_CHECKING:
    from tasks.serving.endpoints import Endpoint

SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "num_experts",
    "num_local_experts",
    "moe_intermediate_size",
)


def require() -> None:
    """Raise EngineError if TurboMind cannot be loaded: LMDeploy would only log it and take its
    PyTorch engine."""
    problem = unavailable()
    if problem:
        raise EngineError(
            f"cannot be loaded here ({problem})",
            where="engine turbomind",
            hint="run on a machine with an NVIDIA GPU and driver, or set engine.name: transformers",
        )


def unavailable() -> str | None:
    """Why TurboMind cannot be loaded in this process, or None."""
    try:
        import lmdeploy.turbomind as package
    except (ImportError, OSError) as error:
        return str(error)
    asked = getattr(package, "is_available", None)  # from 0.18 on the import always succeeds
    return None if asked is None or asked() else "lmdeploy.turbomind.is_available() is False"


def model_format(folder: Path) -> str | None:
    """LMDeploy's word for a quantized folder's weights; None for fp16."""
    quantization = files.read_config(folder).get("quantization_config")
    return None if quantization is None else str(quantization["quant_method"])


def group_size(folder: Path) -> int | None:
    """The group size of a quantized folder, AWQ or compressed-tensors (once loaded, TurboMind
    computes alike); None for fp16."""
    quantization = files.read_config(folder).get("quantization_config") or {}
    groups = quantization.get("config_groups", {}).get("group_0", {}).get("weights", {})
    found = quantization.get("group_size", groups.get("group_size"))
    return None if found is None else int(found)


def config(spec: EngineSpec) -> Any:
    """LMDeploy's TurbomindEngineConfig for a spec."""
    from lmdeploy import TurbomindEngineConfig

    options = spec.engine
    assert isinstance(options, EngineTurbomind)
    return TurbomindEngineConfig(
        model_format=model_format(spec.folder),
        tp=options.tp,
        session_len=options.session_len,
        cache_max_entry_count=options.cache_max_entry_count,
        quant_policy=spec.kv_bits,
    )


def tuning_file(folder: Path, tp: int) -> Path:
    """Where the GEMM tuning of this model shape lies, for the first visible GPU and the LMDeploy of
    this environment."""
    values = files.read_config(folder)
    seen = gpus.visible()
    key = {
        "shape": {name: values.get(name) for name in SHAPE},
        "group_size": group_size(folder),
        "tp": tp,
        "lmdeploy": importlib.metadata.version("lmdeploy"),
        "gpu": seen[0].name if seen else None,
    }
    return paths.home() / "tuning" / f"{hashlib.sha256(canonical_json(key)).hexdigest()[:24]}.gemm"


@contextlib.contextmanager
def loading(spec: EngineSpec) -> Iterator[None]:
    """While an engine loads: let TurboMind take its GEMM tuning from the last start, or keep what
    it finds out now.

    Its choice of kernels is a measurement, so a kept one also makes two starts compute alike.
    """
    assert isinstance(spec.engine, EngineTurbomind)
    kept = tuning_file(spec.folder, spec.engine.tp)
    scratch = kept.with_name(f".{kept.name}.{os.getpid()}")
    if kept.exists():
        os.environ["TM_GEMM_IMPORT"] = str(kept)
    else:
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.environ["TM_GEMM_EXPORT"] = str(scratch)
    try:
        yield
        if scratch.exists() and scratch.stat().st_size:
            scratch.replace(kept)
    finally:
        scratch.unlink(missing_ok=True)
        for name in ("TM_GEMM_IMPORT", "TM_GEMM_EXPORT"):
            os.environ.pop(name, None)


def prepare_server(endpoint: Endpoint) -> None:
    """Before the server starts in this process: refuse a fallback, and import the tuning that
    `loading` has kept."""
    require()
    assert isinstance(endpoint.engine, EngineTurbomind)
    kept = tuning_file(endpoint.artifact.path, endpoint.engine.tp)
    if kept.exists():
        os.environ["TM_GEMM_IMPORT"] = str(kept)
