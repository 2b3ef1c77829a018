"""`lmflows bench` and `lmflows bench-compare`: a running server under load, and two of them
interleaved."""

from __future__ import annotations

from typing import Annotated

import typer

from artifacts.records.load_results import Load
from configs.errors import ConfigError, LmflowsError, VerdictFailed
from configs.load_testing import LoadTest, Slo
from flows.cli.options import Json, check_place, checked, numbers, prepare_prefect, write_figures
from flows.cli.terminal import err, out, show_rows
from flows.run.environment import unreachable_is_an_error

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
Limit = float | None


def bench(
    endpoint: Annotated[
        str | None, typer.Argument(help="an endpoint's name; default: the only one")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="any OpenAI-compatible server, instead of an endpoint")
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="requests kept in flight, several values for a sweep: 1,8,32")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="requests that arrive a second (Poisson), several values for a sweep: 2,4,8"
        ),
    ] = None,
    duration: Annotated[float, typer.Option(help="seconds of each load")] = 30,
    requests: Annotated[
        int | None, typer.Option(min=1, help="send that many at each load, instead of for a time")
    ] = None,
    prompt_tokens: PromptTokens = 512,
    new_tokens: NewTokens = 128,
    slo_ttft_ms: Annotated[
        Limit, typer.Option("--slo-ttft-ms", help="limit of the time to the first token")
    ] = None,
    slo_tpot_ms: Annotated[
        Limit, typer.Option("--slo-tpot-ms", help="limit of the time per token after it")
    ] = None,
    slo_e2e_ms: Annotated[
        Limit, typer.Option("--slo-e2e-ms", help="limit of the time to the last token")
    ] = None,
    api: Api = "completions",
    model: Model = None,
    api_keys_env: Keys = None,
    processes: Processes = None,
    max_lag_ms: MaxLag = 20,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json_file: Json = None,
) -> None:
    """Put a running server under load: latencies with their intervals, throughput, goodput, and the
    client's own lag.

    The exit status is 1 if a result is invalid, because the client was the bottleneck for example.
    """
    from tasks.load_test import BenchRequest

    if url is not None and endpoint is not None:
        raise ConfigError(
            "an endpoint and a URL were given", where="--url", hint="give one of them"
        )
    if url is not None and "://" not in url:
        raise ConfigError(
            f"{url!r} is no URL", where="--url", hint="for example http://127.0.0.1:23333"
        )
    check_place(json_file)
    loads = (
        {"concurrencies": tuple(numbers(concurrency, int)) if concurrency else ()}
        if concurrency or rate
        else {}
    )
    config = checked(
        LoadTest,
        **loads,
        rates_per_second=tuple(numbers(rate, float)) if rate else (),
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
    prepare_prefect()
    from flows.benchmark_endpoint import benchmark_endpoint, latency_rows, throughput_rows

    with unreachable_is_an_error():
        result = benchmark_endpoint(f"bench {url or endpoint or 'endpoint'}", request)
    show_rows(throughput_rows(result.results), False, "")
    show_rows(latency_rows(result.results), False, "")
    write_figures(json_file, result)
    for one in result.results:
        for note in one.notes:
            err.print(f"{one.load.name}: {note}", markup=False, highlight=False, soft_wrap=True)
    if problems := [
        f"{one.load.name}: {problem}" for one in result.results for problem in one.problems
    ]:
        raise LmflowsError(
            "; ".join(problems),
            where="INVALID",
            hint="nothing of an invalid load says how fast the server is",
        )


def bench_compare(
    first: Annotated[str, typer.Argument(help="the baseline: an endpoint's name, or a URL")],
    second: Annotated[str, typer.Argument(help="what is judged: an endpoint's name, or a URL")],
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="requests kept in flight; default: 4")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="or requests that arrive a second")] = None,
    requests: Annotated[
        int, typer.Option(min=1, help="of one turn; there are four turns a round")
    ] = 32,
    rounds: Annotated[int, typer.Option(help="at least 6")] = 10,
    metric: Annotated[
        str, typer.Option(help="what decides: e2e, ttft, tpot or tokens_per_second")
    ] = "e2e",
    tolerance: Annotated[
        float, typer.Option(help="difference up to which they count as equally fast")
    ] = 0.01,
    prompt_tokens: PromptTokens = 512,
    new_tokens: NewTokens = 128,
    api: Api = "completions",
    model: Model = None,
    api_keys_env: Keys = None,
    processes: Processes = None,
    max_lag_ms: MaxLag = 20,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    timeout_minutes: Annotated[float, typer.Option(help="after which it is given up")] = 120,
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
        concurrency=concurrency or (None if rate else 4),
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
    prepare_prefect()
    from flows.benchmark_endpoint import compare_endpoints, ratio_rows, verdict_line

    with unreachable_is_an_error():
        comparison = compare_endpoints(f"compare {first} {second}", request).comparison
    show_rows(ratio_rows(comparison), False, "")
    write_figures(json_file, comparison)
    if comparison.problems:
        raise LmflowsError(
            "; ".join(comparison.problems),
            where="INVALID",
            hint="nothing of an invalid comparison says which server is faster",
        )
    out.print(verdict_line(comparison), markup=False, highlight=False, soft_wrap=True)
    if comparison.outcome == "slower":
        raise VerdictFailed(
            f"{second} is slower than {first}",
            where="comparison",
            hint="the table has the ratio and its interval",
        )
