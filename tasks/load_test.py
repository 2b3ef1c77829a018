"""The steps around the load generator: a variant served for its load test, a running server, two
servers by turns."""

from __future__ import annotations

from pydantic import Field, model_validator

from artifacts.manifest import ModelArtifact, Parent, canonical_json
from artifacts.records.load_results import (
    LOAD,
    Load,
    LoadReport,
    LoadResult,
    Metric,
    SpeedComparison,
    loads_of,
)
from configs.engines import Engine
from configs.load_testing import LoadTest
from configs.variants import Variant
from tasks.load.compare import MIN_ROUNDS, TOLERANCE, compare_servers
from tasks.load.run import default_processes, run_loads
from tasks.load.target import Server, named, of_endpoint
from tasks.runner import runtimes
from tasks.runner.step import Context, Request, Result, step
from tasks.serving.temporary import served

READY_SECONDS = 1800.0


class LoadTestRequest(Request):
    """`hardware` says what the server will run on: figures of other hardware are other figures."""

    variant: Variant
    model: ModelArtifact
    engine: Engine
    config: LoadTest
    hardware: dict[str, str]
    trust_remote_code: bool = False

    def key_fields(self) -> dict[str, object]:
        """Another engine must measure again."""
        return super().key_fields() | {"runtime": runtimes.fingerprint(self.engine.runtime)}

    @property
    def limit_minutes(self) -> float:
        return self.config.timeout_minutes


class LoadTestResult(Result):
    measurement: ModelArtifact


class BenchRequest(Request):
    """`place`: an endpoint's name, a URL, or None for the only endpoint. `model`: of a URL; None
    for the first that the server names. `api_keys_env`: environment variable with the API key of a
    URL."""

    place: str | None
    model: str | None = None
    api_keys_env: str | None = None
    config: LoadTest

    @property
    def limit_minutes(self) -> float:
        return self.config.timeout_minutes


class BenchResult(Result):
    results: tuple[LoadResult, ...]


class CompareServersRequest(Request):
    """`first` and `second`: endpoints' names or URLs. `load` is that of one turn."""

    first: str
    second: str
    model: str | None = None
    api_keys_env: str | None = None
    load: Load
    rounds: int = Field(default=10, ge=MIN_ROUNDS, le=1000)
    metric: Metric = "e2e"
    tolerance: float = Field(default=TOLERANCE, ge=0, lt=1)
    timeout_minutes: float = Field(default=120, gt=0)

    @property
    def limit_minutes(self) -> float:
        return self.timeout_minutes

    @model_validator(mode="after")
    def _has_the_metric(self) -> CompareServersRequest:
        if self.metric == "tpot" and self.load.new_tokens < 2:
            raise ValueError("an answer of one token has no time per token")
        return self


class CompareServersResult(Result):
    comparison: SpeedComparison


@step(gpu=True, libraries=("aiohttp",))
def load_test(request: LoadTestRequest, context: Context) -> LoadTestResult:
    """Serve one variant and put it under load."""
    context.progress(0.01, f"starting {request.engine.name}")
    with served(
        request.model.path,
        request.engine,
        request.variant,
        trust_remote_code=request.trust_remote_code,
        limit_s=READY_SECONDS,
        waiting=lambda text: context.progress(0.02, text),
    ) as endpoint:
        known = of_endpoint(endpoint)
        # the folder's name, not an endpoint's keys
        server = Server(
            known.target, "", known.engine | {"artifact": request.model.digest}, known.gpus
        )
        results = run_loads(
            server,
            loads_of(request.config, request.config.processes or default_processes()),
            lambda done, text: context.progress(0.05 + 0.93 * done, text),
        )
    report = LoadReport(variant=request.variant, model=request.model.digest, results=results)
    with context.store.staging() as staging:
        staging.write(LOAD, canonical_json(report.model_dump(mode="json")))
        artifact = context.store.commit(
            staging, "measurement", parents=[Parent(role="model", digest=request.model.digest)]
        )
    return LoadTestResult(measurement=artifact)


@step(cached=False)
def bench_server(request: BenchRequest, context: Context) -> BenchResult:
    """Put a running server under load."""
    server = named(request.place, model=request.model, api_keys_env=request.api_keys_env)
    return BenchResult(
        results=run_loads(
            server,
            loads_of(request.config, request.config.processes or default_processes()),
            context.progress,
        )
    )


@step(cached=False)
def compare_speed(request: CompareServersRequest, context: Context) -> CompareServersResult:
    """Put two running servers under the same load by turns: is the second one slower?"""
    first, second = (
        named(place, model=request.model, api_keys_env=request.api_keys_env)
        for place in (request.first, request.second)
    )
    comparison = compare_servers(
        first,
        second,
        request.load,
        rounds=request.rounds,
        metric=request.metric,
        tolerance=request.tolerance,
        say=lambda done, text: context.progress(done / request.rounds, text),
    )
    return CompareServersResult(comparison=comparison)
