"""`lmflows bench` and `lmflows bench-compare`: a running server under load, and two of them
interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from artifacts.records.load_results import Load
from configs.errors import ConfigError, LmflowsError, VerdictFailed
from configs.load_testing import LoadTest, Slo
from flows.cli.options import Json, check_place, checked, numbers, starting_prefect, write_figures
from flows.cli.terminal import say, say_err, show_rows
from flows.run.environment import unreachable_is_an_error

if TYPE_CHECKING:
    from artifacts.records.load_results import LoadResult, SpeedComparison

DEFAULT_CONCURRENCY = 4  # of a comparison

# of both commands
Api = Annotated[str, typer.Option("--api", help="completions or chat")]
Keys = Annotated[
    str | None,
    typer.Option("--api-keys-env", help="environment variable with the API key of a URL"),
]
Model = Annotated[
    str | None,
    typer.Option("--model", help="the model's name at a URL; default: the first that it names"),
]
Processes = Annotated[
    int | None, typer.Option("--processes", min=1, help="of the client; default: half the cores")
]
PromptTokens = Annotated[int, typer.Option("--prompt-tokens", min=1)]
NewTokens = Annotated[int, typer.Option("--new-tokens", min=1)]
MaxLag = Annotated[
    float,
    typer.Option(
        "--max-lag-ms", help="p99 of the client's own lag beyond which a result is invalid"
    ),
]
Seed = Annotated[int, typer.Option(min=0)]

# of `bench`
EndpointName = Annotated[
    str | None, typer.Argument(help="an endpoint's name; default: the only one")
]
Url = Annotated[
    str | None, typer.Option(help="any OpenAI-compatible server, instead of an endpoint")
]
Concurrencies = Annotated[
    str | None, typer.Option(help="requests kept in flight, several values for a sweep: 1,8,32")
]
Rates = Annotated[
    str | None,
    typer.Option(help="requests that arrive a second (Poisson), several values for a sweep: 2,4,8"),
]
Duration = Annotated[float, typer.Option(help="seconds of each load")]
Requests = Annotated[
    int | None, typer.Option(min=1, help="send that many at each load, instead of for a time")
]
FirstTokenLimit = Annotated[
    float | None, typer.Option("--slo-ttft-ms", help="limit of the time to the first token")
]
TokenLimit = Annotated[
    float | None, typer.Option("--slo-tpot-ms", help="limit of the time per token after it")
]
LastTokenLimit = Annotated[
    float | None, typer.Option("--slo-e2e-ms", help="limit of the time to the last token")
]

# of `bench-compare`
First = Annotated[str, typer.Argument(help="the baseline: an endpoint's name, or a URL")]
Second = Annotated[str, typer.Argument(help="what is judged: an endpoint's name, or a URL")]
Concurrency = Annotated[int | None, typer.Option(min=1, help="requests kept in flight; default: 4")]
Rate = Annotated[float | None, typer.Option(help="or requests that arrive a second")]
TurnRequests = Annotated[int, typer.Option(min=1, help="of one turn; there are four turns a round")]
Rounds = Annotated[int, typer.Option(help="at least 6")]
Metric = Annotated[str, typer.Option(help="what decides: e2e, ttft, tpot or tokens_per_second")]
Tolerance = Annotated[float, typer.Option(help="difference up to which they count as equally fast")]
TimeoutMinutes = Annotated[float, typer.Option(help="after which it is given up")]


def bench(
    endpoint: EndpointName = None,
    url: Url = None,
    concurrency: Concurrencies = None,
    rate: Rates = None,
    duration: Duration = 30,
    requests: Requests = None,
    prompt_tokens: PromptTokens = 512,
    new_tokens: NewTokens = 128,
    slo_ttft_ms: FirstTokenLimit = None,
    slo_tpot_ms: TokenLimit = None,
    slo_e2e_ms: LastTokenLimit = None,
    api: Api = "completions",
    model: Model = None,
    api_keys_env: Keys = None,
    processes: Processes = None,
    max_lag_ms: MaxLag = 20,
    seed: Seed = 0,
    json_file: Json = None,
) -> None:
    """Put a running server under load: latencies with their intervals, throughput, goodput, and the
    client's own lag.

    The exit status is 1 if a result is invalid, because the client was the bottleneck for example.
    """
    from tasks.load_test import BenchRequest

    check_server(endpoint, url)
    check_place(json_file)
    config = checked(
        LoadTest,
        **loads_of(concurrency, rate),
        duration_seconds=duration,
        requests=requests,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        api=api,
        processes=processes,
        seed=seed,
        max_lag_ms=max_lag_ms,
        slo=checked(Slo, ttft_ms=slo_ttft_ms, tpot_ms=slo_tpot_ms, e2e_ms=slo_e2e_ms),
    )
    request = checked(
        BenchRequest, place=url or endpoint, model=model, api_keys_env=api_keys_env, config=config
    )
    with starting_prefect():
        from flows.benchmark_endpoint import benchmark_endpoint
    with unreachable_is_an_error():
        result = benchmark_endpoint(f"bench {url or endpoint or 'endpoint'}", request)
    show_loads(result.results)
    write_figures(json_file, result)
    require_valid(result.results)


def check_server(endpoint: str | None, url: str | None) -> None:
    """Refuse two servers, and what is no URL."""
    if url is None:
        return
    if endpoint is not None:
        raise ConfigError(
            "an endpoint and a URL were given", where="--url", hint="give one of them"
        )
    if "://" not in url:
        raise ConfigError(
            f"{url!r} is no URL", where="--url", hint="for example http://127.0.0.1:23333"
        )


def loads_of(concurrency: str | None, rate: str | None) -> dict[str, Any]:
    """The loads of a `LoadTest`; its own if none are named."""
    if not concurrency and not rate:
        return {}
    return {
        "concurrencies": numbers(concurrency, int) if concurrency else [],
        "rates_per_second": numbers(rate, float) if rate else [],
    }


def show_loads(results: Sequence[LoadResult]) -> None:
    """Print the tables of a benchmark, and what there is to know about each load."""
    from flows.benchmark_endpoint import latency_rows, throughput_rows

    show_rows(throughput_rows(results), False, "")
    show_rows(latency_rows(results), False, "")
    for result in results:
        for note in result.notes:
            say_err(f"{result.load.name}: {note}")


def require_valid(results: Sequence[LoadResult]) -> None:
    """Raise LmflowsError if a load is invalid."""
    problems = [
        f"{result.load.name}: {problem}" for result in results for problem in result.problems
    ]
    if problems:
        raise LmflowsError(
            "; ".join(problems),
            where="INVALID",
            hint="nothing of an invalid load says how fast the server is",
        )


def bench_compare(
    first: First,
    second: Second,
    concurrency: Concurrency = None,
    rate: Rate = None,
    requests: TurnRequests = 32,
    rounds: Rounds = 10,
    metric: Metric = "e2e",
    tolerance: Tolerance = 0.01,
    prompt_tokens: PromptTokens = 512,
    new_tokens: NewTokens = 128,
    api: Api = "completions",
    model: Model = None,
    api_keys_env: Keys = None,
    processes: Processes = None,
    max_lag_ms: MaxLag = 20,
    seed: Seed = 0,
    timeout_minutes: TimeoutMinutes = 120,
    json_file: Json = None,
) -> None:
    """Put two running servers under the same load, interleaved (A B B A): is the second one slower?

    The exit status is 3 if it is, and 1 if that cannot be said."""
    from tasks.load.compare import ComparisonPlan
    from tasks.load.run import default_processes
    from tasks.load_test import CompareServersRequest

    check_place(json_file)
    load = checked(
        Load,
        concurrency=concurrency or (None if rate else DEFAULT_CONCURRENCY),
        rate_per_second=rate,
        requests=requests,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        api=api,
        processes=processes or default_processes(),
        seed=seed,
        max_lag_seconds=max_lag_ms / 1e3,
    )
    plan = checked(ComparisonPlan, load=load, rounds=rounds, metric=metric, tolerance=tolerance)
    request = checked(
        CompareServersRequest,
        first=first,
        second=second,
        model=model,
        api_keys_env=api_keys_env,
        plan=plan,
        timeout_minutes=timeout_minutes,
    )
    with starting_prefect():
        from flows.benchmark_endpoint import compare_endpoints, ratio_rows
    with unreachable_is_an_error():
        comparison = compare_endpoints(f"compare {first} {second}", request).comparison
    show_rows(ratio_rows(comparison), False, "")
    write_figures(json_file, comparison)
    show_verdict(comparison, first, second)


def show_verdict(comparison: SpeedComparison, first: str, second: str) -> None:
    """Print what the comparison says.

    Raises:
        LmflowsError: it says nothing.
        VerdictFailed: the second server is slower.
    """
    from flows.benchmark_endpoint import verdict_line

    if comparison.problems:
        raise LmflowsError(
            "; ".join(comparison.problems),
            where="INVALID",
            hint="nothing of an invalid comparison says which server is faster",
        )
    say(verdict_line(comparison))
    if comparison.outcome == "slower":
        raise VerdictFailed(
            f"{second} is slower than {first}",
            where="comparison",
            hint="the table has the ratio and its interval",
        )
