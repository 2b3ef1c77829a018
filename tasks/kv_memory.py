"""What `cache_max_entry_count` costs: the model loaded anew with each share, and the GPU memory it
then holds, by NVML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from artifacts.records.record import Record
from configs.engines import Engine
from configs.errors import EngineError, LmflowsError
from configs.variants import KvBits
from tasks.engines.process import EngineProcess
from tasks.engines.protocol import EngineSpec
from tasks.machine import gpus
from tasks.runner.step import Context, Request, Result, step


class MemoryRequest(Request):
    """`shares`: values of cache_max_entry_count."""

    folder: Path
    engine: Engine
    kv_bits: KvBits = 0
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(min_length=1)
    hardware: dict[str, str]
    trust_remote_code: bool = False

    @property
    def limit_minutes(self) -> float:
        return 60.0

    @field_validator("engine")
    @classmethod
    def _with_a_share(cls, engine: Engine) -> Engine:
        if not engine.reserves_cache:
            raise ValueError(f"{engine.name} has no cache_max_entry_count")
        return engine


class Taken(Record):
    """Device memory that a loaded engine takes, in bytes; a `problem` says why it did not load."""

    share: float
    gpu_bytes: int = 0
    load_seconds: float = 0.0
    problem: str | None = None


class MemoryResult(Result):
    rows: tuple[Taken, ...]
    hardware: dict[str, str]


@step(gpu=True, cached=False)
def kv_memory(request: MemoryRequest, context: Context) -> MemoryResult:
    """Load the model with each share of the free GPU memory for its KV cache, and read what it
    takes."""
    require_gpu()
    rows = []
    for number, share in enumerate(request.shares):
        context.progress(number / len(request.shares), f"cache_max_entry_count {share}")
        spec = EngineSpec(
            folder=request.folder,
            engine=request.engine.model_copy(update={"cache_max_entry_count": share}),
            kv_bits=request.kv_bits,
            trust_remote_code=request.trust_remote_code,
        )
        before = gpus.used_bytes()
        try:
            with EngineProcess(spec, log=context.scratch(f"engine-{share:g}.log")) as engine:
                rows.append(
                    Taken(
                        share=share,
                        gpu_bytes=gpus.used_bytes() - before,
                        load_seconds=round(engine.load_seconds, 2),
                    )
                )
        except LmflowsError as error:
            rows.append(Taken(share=share, problem=error.message))
    return MemoryResult(rows=tuple(rows), hardware=request.hardware)


def require_gpu() -> None:
    """Raise EngineError if no GPU is visible."""
    if not gpus.visible():
        raise EngineError(
            "needs a GPU, and there is none",
            where="memory",
            hint="run on a machine with an NVIDIA GPU",
        )
