"""Flows about the speed of running servers: one under a sweep of loads, two interleaved."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import flow

from artifacts.records.load_results import LoadResult, Percentile, RatioInterval, SpeedComparison
from flows.run.publish import artifact_key, publish_table
from flows.run.run import begin_run
from tasks.load_test import (
    BenchRequest,
    BenchResult,
    CompareServersRequest,
    CompareServersResult,
    bench_server,
    compare_speed,
)

NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end to end", "tokens_per_second": "tokens/s"}


@flow(name="benchmark-endpoint", flow_run_name="{title}", persist_result=False)
def benchmark_endpoint(title: str, request: BenchRequest) -> BenchResult:
    """Put a running server under a sweep of loads."""
    run = begin_run(artifact_key(title))
    result = run(bench_server, request)
    throughput = throughput_rows(result.results)
    publish_table(f"throughput {title}", throughput, "requests and tokens a second")
    latencies = latency_rows(result.results)
    publish_table(f"latency {title}", latencies, "milliseconds, with 95 % intervals")
    return result


@flow(name="compare-endpoints", flow_run_name="{title}", persist_result=False)
def compare_endpoints(title: str, request: CompareServersRequest) -> CompareServersResult:
    """Put two running servers under the same load, interleaved: is the second one slower?"""
    run = begin_run(artifact_key(title))
    result = run(compare_speed, request)
    comparison = result.comparison
    publish_table(f"speed {title}", ratio_rows(comparison), verdict_line(comparison))
    return result


def throughput_rows(results: Sequence[LoadResult]) -> list[dict[str, str]]:
    """The table of loads, as text: what was served, within which limits, and whether the client
    kept up."""
    rows = []
    for result in results:
        row = {
            "load": result.load.name,
            "requests": str(len(result.rows.status)),
            "requests/s": f"{result.requests_per_second:.2f}",
            "tokens/s": f"{result.tokens_per_second:.1f}",
        }
        if result.within_slo is not None and result.goodput_per_second is not None:
            share = result.within_slo
            row |= {
                "goodput/s": f"{result.goodput_per_second:.2f}",
                "within SLO": f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})",
            }
        row |= {
            "failed": (
                ", ".join(f"{count} x {status}" for status, count in result.errors.items()) or "0"
            ),
            "client's lag, p99": (
                f"{1e3 * max(result.client.send.p99, result.client.loop.p99):.1f} ms"
            ),
            "valid": "yes" if result.valid else "INVALID",
        }
        rows.append(row)
    return rows


def latency_rows(results: Sequence[LoadResult]) -> list[dict[str, str]]:
    """The table of latencies in milliseconds, as text: percentiles with their 95 % intervals."""
    return [
        {"load": result.load.name, "milliseconds": name}
        | {f"p{point.percent:g}": _cell(point) for point in values.points}
        for result in results
        for name, values in (
            ("TTFT", result.ttft),
            ("TPOT", result.tpot),
            ("inter-token", result.inter_token),
            ("end to end", result.e2e),
        )
    ]


def ratio_rows(comparison: SpeedComparison) -> list[dict[str, str]]:
    """The table of a comparison, as text: the second server's figures over the first one's."""
    return [
        {
            "figure": (
                NAMES[ratio.metric] + (" (decides)" if ratio.metric == comparison.metric else "")
            ),
            "ratio": f"{ratio.median:.4f}",
            "95 % interval": f"{ratio.low:.4f} to {ratio.high:.4f}",
            "would be seen": f"{ratio.smallest_seen:.1%}",
            "rounds": str(len(ratio.rounds)),
        }
        for ratio in comparison.ratios
    ]


def verdict_line(comparison: SpeedComparison) -> str:
    """What a comparison says, in one line."""
    if comparison.problems:
        return "INVALID: " + "; ".join(comparison.problems)
    ratio: RatioInterval = comparison.ratio(comparison.metric)
    return (
        f"{comparison.second.model} at {comparison.second.url}: {comparison.outcome};"
        f" {NAMES[ratio.metric]} ratio {ratio.median:.4f} ({ratio.low:.4f} to {ratio.high:.4f}); a"
        f" difference of {ratio.smallest_seen:.1%} would be seen nine times in ten"
    )


def _cell(point: Percentile) -> str:
    if point.value is None or point.low is None or point.high is None:
        return "too few requests"
    return f"{1e3 * point.value:.2f} ({1e3 * point.low:.2f} to {1e3 * point.high:.2f})"
