"""The steps around the load generator: a variant served for its load test, a running server, two
servers interleaved."""

from __future__ import annotations

from pydantic import Field

from artifacts.manifest import ModelArtifact, Parent, canonical_json
from artifacts.records.load_results import LOAD, LoadReport, LoadResult, SpeedComparison
from configs.engines import Engine
from configs.load_testing import LoadTest
from configs.variants import Variant
from tasks.load.compare import ComparisonPlan, compare_servers
from tasks.load.run import run_sweep
from tasks.load.target import named, of_temporary
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
    """`first` and `second`: endpoints' names or URLs; `model` and `api_keys_env` as in
    BenchRequest."""

    first: str
    second: str
    model: str | None = None
    api_keys_env: str | None = None
    plan: ComparisonPlan
    timeout_minutes: float = Field(default=120, gt=0)

    @property
    def limit_minutes(self) -> float:
        return self.timeout_minutes


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
        trust_remote_code=context.trusts(request.model),
        limit_s=READY_SECONDS,
        log=lambda text: context.progress(0.02, text),
    ) as endpoint:
        server = of_temporary(endpoint, request.model.digest)
        results = run_sweep(
            server,
            request.config,
            lambda fraction, text: context.progress(0.05 + 0.93 * fraction, text),
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
    return BenchResult(results=run_sweep(server, request.config, context.progress))


@step(cached=False)
def compare_speed(request: CompareServersRequest, context: Context) -> CompareServersResult:
    """Put two running servers under the same load, interleaved: is the second one slower?"""
    first, second = (
        named(place, model=request.model, api_keys_env=request.api_keys_env)
        for place in (request.first, request.second)
    )
    comparison = compare_servers(first, second, request.plan, context.progress)
    return CompareServersResult(comparison=comparison)
