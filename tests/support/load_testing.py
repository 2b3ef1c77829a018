"""Loads for the tests of the load generator, and results of planted figures."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from artifacts.records.load_results import Environment, Load, LoadResult, Target, Warmup
from tasks.load.metrics import summarize
from tasks.load.pool import Measured

LENIENT = {"max_lag_seconds": 0.5}  # other tests run on the same cores
LOAD = Load(concurrency=2, duration_seconds=10, prompt_tokens=8, new_tokens=11)


def load(**more: Any) -> Load:
    given = {"concurrency": 4} if "rate_per_second" not in more else {}
    length = {"requests": 24} if "duration_seconds" not in more else {}
    return Load.model_validate(
        {"prompt_tokens": 40, "new_tokens": 11} | given | length | LENIENT | more
    )


def columns(rows: list[tuple[float, float, float, int, str]]) -> dict[str, npt.NDArray[Any]]:
    """Columns from (start, ttft, e2e, tokens, status)."""
    start, ttft, e2e, tokens, status = (list(column) for column in zip(*rows, strict=True))
    count = len(rows)
    return {
        "number": np.arange(count),
        "start": np.array(start),
        "lag": np.zeros(count),
        "ttft": np.array(ttft),
        "e2e": np.array(e2e),
        "tokens": np.array(tokens),
        "prompt_tokens": np.full(count, 8),
        "chunks": np.array(tokens),
        "status": np.array(status, "U32"),
        "gap_counts": np.zeros(count, np.int64),
    }


def result_of(
    load: Load, data: dict[str, npt.NDArray[Any]], *, steady: bool = True, cpu: float = 0.1
) -> LoadResult:
    measured = Measured(data, np.empty(0, np.float32), np.full(100, 0.001), (cpu,), "")
    return summarize(
        load,
        Target(url="http://x", model="m"),
        measured,
        Warmup(medians=(1.0, 1.0), steady=steady),
        Environment(fingerprint={"machine": "x"}),
        datetime.now(UTC),
    )
