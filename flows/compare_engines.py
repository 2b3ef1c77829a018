"""Flows about engines rather than models in production: runtimes side by side, and what the KV
cache takes of a GPU."""

from __future__ import annotations

from prefect import flow

from configs.units import mb
from flows.run.publish import artifact_key, publish_table
from flows.run.run import begin_run
from tasks.compare_runtimes import (
    CompareRuntimesRequest,
    CompareRuntimesResult,
    Ratio,
    RuntimeFigures,
    compare_runtimes,
)
from tasks.kv_memory import MemoryRequest, MemoryResult, kv_memory
from tasks.machine.gpus import choose
from tasks.runner import runtimes


@flow(name="compare-engines", flow_run_name="{title}", persist_result=False)
def compare_engines(title: str, request: CompareRuntimesRequest) -> CompareRuntimesResult:
    """Run one model through several engine runtimes, interleaved: which is faster, by how much, and
    do the answers agree?"""
    for name in request.runtimes:
        runtimes.python(name)  # made on first use, before a GPU is held
    run = begin_run(artifact_key(title), choose(None, request.engine.tp))
    result = run(compare_runtimes, request)
    publish_table(f"engines {title}", comparison_rows(result), "engine runtimes, side by side")
    return result


@flow(name="kv-cache-memory", flow_run_name="{title}", persist_result=False)
def kv_cache_memory(title: str, request: MemoryRequest) -> MemoryResult:
    """Load a model with several shares of the GPU memory for its KV cache, and read what it
    takes."""
    run = begin_run(artifact_key(title), choose(None, request.engine.tp))
    result = run(kv_memory, request)
    publish_table(f"memory {title}", memory_rows(result), "cache_max_entry_count and GPU memory")
    return result


def comparison_rows(result: CompareRuntimesResult) -> list[dict[str, str]]:
    """The table of runtimes, as text: tokens per second are medians, ratios have their 95 %
    interval."""
    rows = []
    for item in result.figures:
        versions = (
            f"{name} {item.versions[name]}"
            for name in ("lmdeploy", "torch")
            if name in item.versions
        )
        row = {"runtime": item.runtime, "versions": ", ".join(versions)}
        for speed in item.speeds:
            batch = speed.batch_size
            prefill = f"{speed.prefill_median:.0f}{_ratio(item.prefill_ratio, batch)}"
            decode = f"{speed.decode_median:.0f}{_ratio(item.decode_ratio, batch)}"
            row |= {f"prefill, batch {batch}": prefill, f"decode, batch {batch}": decode}
        row["agreement"] = _agreement(item)
        rows.append(row)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [{column: row.get(column, "") for column in columns} for row in rows]


def _ratio(ratios: tuple[Ratio, ...], batch_size: int) -> str:
    return "".join(
        f" ({ratio.median:.2f}; {ratio.low:.2f} to {ratio.high:.2f})"
        for ratio in ratios
        if ratio.batch_size == batch_size
    )


def _agreement(item: RuntimeFigures) -> str:
    if item.problem or item.agreement is None:
        return (item.problem or "").split(";")[0]
    scores = item.agreement
    difference = (scores.nll_candidate - scores.nll_parent) / max(1, scores.tokens)
    return (
        f"NLL {difference:+.5f} nats a token, top-1 {scores.same_top / max(1, scores.tokens):.2%}, "
        f"{item.same_answers}/{len(item.answers)} answers equal"
        + (f", {scores.broken} positions broken" if scores.broken else "")
    )


def memory_rows(result: MemoryResult) -> list[dict[str, str]]:
    """The table of cache_max_entry_count, as text."""
    return [
        {
            "cache_max_entry_count": f"{row.share:g}",
            "GPU memory": row.problem.split(";")[0] if row.problem else mb(row.gpu_bytes),
            "load": "" if row.problem else f"{row.load_seconds:.1f} s",
        }
        for row in result.rows
    ]
