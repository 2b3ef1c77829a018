"""LMDeploy's TurboMind engine: what it refuses, its configuration, and its GEMM tuning, which
outlives a start."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts.manifest import canonical_json
from configs import paths
from configs.engines import EngineTurbomind
from configs.errors import EngineError
from configs.variants import KvBits
from tasks.checkpoints import files
from tasks.engines import lmdeploy
from tasks.engines.lmdeploy import model_format
from tasks.engines.protocol import Engine, EngineSpec
from tasks.machine import gpus

LIBRARIES = lmdeploy.LIBRARIES
refuses_deployment = lmdeploy.refuses_deployment
server_command = lmdeploy.server_command
become_server = lmdeploy.become_server
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


def unavailable() -> str | None:
    """Why TurboMind cannot be loaded in this process, or None."""
    problem = _problem()
    if problem is None:
        return None
    return (
        f"cannot be loaded here ({problem}), and LMDeploy would fall back to another engine in"
        " silence"
    )


def refuses_architecture(architecture: str) -> str | None:
    served = _architectures()
    if architecture in served:
        return None
    return f"TurboMind does not serve {architecture} -> choose one of {', '.join(sorted(served))}"


def refuses_kv(kv_bits: KvBits, head_dim: int) -> str | None:
    """It would abort, and take the request with it."""
    if kv_bits == 4 and head_dim == 64:
        return "KV int4 aborts TurboMind with head_dim 64 -> use KV int8 (w4a16-kv8)"
    return None


def load(spec: EngineSpec) -> Engine:
    require()
    with tuning(spec.folder, spec.engine.tp):
        return lmdeploy.LmdeployEngine(spec, config(spec))


def prepare_server(folder: Path, tp: int) -> None:
    """Refuse a fallback, and import the tuning that an earlier start has kept."""
    require()
    kept = tuning_file(folder, tp)
    if kept.exists():
        os.environ["TM_GEMM_IMPORT"] = str(kept)


def require() -> None:
    """Raise EngineError if TurboMind cannot be loaded: LMDeploy would only log it and take its
    PyTorch engine."""
    problem = _problem()
    if problem is not None:
        raise EngineError(
            f"cannot be loaded here ({problem})",
            where="engine turbomind",
            hint="run on a machine with an NVIDIA GPU and driver, or set engine.name: transformers",
        )


def _problem() -> str | None:
    try:
        import lmdeploy.turbomind as package
    except (ImportError, OSError) as error:
        return str(error)
    asked = getattr(package, "is_available", None)  # from 0.18 on the import always succeeds
    if asked is None or asked():
        return None
    return "lmdeploy.turbomind.is_available() is False"


def _architectures() -> set[str]:
    """What TurboMind serves. Read from its file: importing the package needs a CUDA driver."""
    import lmdeploy

    package = Path(str(lmdeploy.__file__)).parent
    spec = importlib.util.spec_from_file_location(
        "supported_models", package / "turbomind" / "supported_models.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return set(module.SUPPORTED_ARCHS)


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
def tuning(folder: Path, tp: int) -> Iterator[None]:
    """While a model loads: let TurboMind take its GEMM tuning from the last start, or keep what it
    finds out now.

    Its choice of kernels is a measurement, so a kept one also makes two starts compute alike.
    """
    kept = tuning_file(folder, tp)
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
