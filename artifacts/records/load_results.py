"""What a server did under load: every request, the percentiles with their intervals, the state of
client and hardware, and the comparison of two servers.

Data only, as it is stored; `tasks.load` makes it. Times are seconds, at the client; None is what
could not be measured, or not with so few requests.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Literal, Self

from pydantic import Field, model_validator

from artifacts.manifest import ModelArtifact
from artifacts.records.record import Record
from configs.load_testing import Api, LoadTest, Slo

Metric = Literal["ttft", "tpot", "e2e", "tokens_per_second"]
OK = "ok"
LOAD = "load.json"  # of a load test's measurement artifact


class Load(Record):
    """One load. Exactly one of `concurrency` (closed loop) and `rate_per_second` (open loop,
    Poisson arrivals) is given, and exactly one of `duration_seconds` and `requests`."""

    concurrency: int | None = Field(default=None, ge=1)
    rate_per_second: float | None = Field(default=None, gt=0)
    duration_seconds: float | None = Field(default=None, gt=0)
    requests: int | None = Field(default=None, ge=1)
    prompt_tokens: int = Field(ge=1)
    new_tokens: int = Field(ge=1)
    api: Api = "completions"
    slo: Slo = Slo()
    processes: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    request_timeout_seconds: float = Field(default=300, gt=0)
    max_lag_seconds: float = Field(default=0.02, gt=0)
    max_error_share: float = Field(default=0.01, ge=0, lt=1)

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.concurrency is None) == (self.rate_per_second is None):
            raise ValueError("give either concurrency or rate_per_second")
        if (self.duration_seconds is None) == (self.requests is None):
            raise ValueError("give either duration_seconds or requests")
        return self

    @property
    def name(self) -> str:
        return (
            f"concurrency {self.concurrency}"
            if self.concurrency is not None
            else f"{self.rate_per_second:g} requests/s"
        )


def loads_of(config: LoadTest, processes: int) -> tuple[Load, ...]:
    """The loads of a sweep: concurrencies first, then rates, each in the order that was given."""
    load = partial(
        Load,
        duration_seconds=None if config.requests else config.duration_seconds,
        requests=config.requests,
        prompt_tokens=config.prompt_tokens,
        new_tokens=config.new_tokens,
        api=config.api,
        slo=config.slo,
        processes=processes,
        seed=config.seed,
        request_timeout_seconds=config.request_timeout_seconds,
        max_lag_seconds=config.max_lag_ms / 1e3,
        max_error_share=config.max_error_share,
    )
    closed = [load(concurrency=concurrency) for concurrency in config.concurrencies]
    return (*closed, *(load(rate_per_second=rate) for rate in config.rates_per_second))


class Rows(Record):
    """All requests of a run as columns of equal length, ordered by start.

    Attributes:
        start: when it was sent, from the run's start.
        lag: how much later than it was due: in an open loop than its arrival, in a closed one than
            the end of the answer before it.
        ttft: from sending it to the first piece of text.
        tpot: (e2e - ttft) / (tokens - 1); None with fewer than two tokens.
        e2e: from sending it to the last event of the answer; of a failed request to its failure.
        prompt_tokens: by the server's count; None if it gives none.
        tokens: by the server's count where it gives one, else the pieces of text.
        chunks: pieces of text, of which one can hold several tokens, or a part of one.
        status: "ok", "http 500", "cut" (the stream ended early), "timeout", "connection", "server
            error" (an error event in the stream).
    """

    start: tuple[float, ...]
    lag: tuple[float, ...]
    ttft: tuple[float | None, ...]
    tpot: tuple[float | None, ...]
    e2e: tuple[float, ...]
    prompt_tokens: tuple[int | None, ...]
    tokens: tuple[int, ...]
    chunks: tuple[int, ...]
    status: tuple[str, ...]


class Percentile(Record):
    """One percentile and its 95 % interval; all None where the requests are too few to bound it
    from both sides."""

    percent: float
    value: float | None
    low: float | None
    high: float | None


class Percentiles(Record):
    """A distribution. `effective`: the number of independent values that say as much as these,
    which may be correlated."""

    count: int
    effective: float
    mean: float | None
    points: tuple[Percentile, ...]

    def at(self, percent: float) -> Percentile:
        return next(point for point in self.points if point.percent == percent)


class Histogram(Record):
    """Counts between edges; values beyond the outer edges are in the outer bins."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Spread(Record):
    """Lowest, median and highest of some samples."""

    low: float
    median: float
    high: float


class GpuState(Record):
    """One GPU during a run, sampled by NVML; a figure that the board does not give is None.

    Attributes:
        throttle: share of the samples in which NVML named the reason.
    """

    index: int
    name: str
    samples: int
    sm_clock_mhz: Spread | None
    memory_clock_mhz: Spread | None
    temperature_c: Spread | None
    power_w: Spread | None
    power_limit_w: float | None
    utilization_percent: Spread | None
    memory_used_bytes: Spread | None
    throttle: dict[str, float]


class Environment(Record):
    """What a result holds on. Two results are comparable only if their `fingerprint` is the same.

    Attributes:
        fingerprint: the server's hardware and driver; of a server on another machine only which
            machine.
        gpus: their state during the run; empty without one, or of another machine.
        cpu_mhz: over all cores.
        cpu_share: of all cores of the client's machine, whoever used them.
        engine: what the server runs, with versions, as far as it is known.
        client: versions of what sent the requests.
    """

    fingerprint: dict[str, str]
    gpus: tuple[GpuState, ...] = ()
    cpu_mhz: Spread | None = None
    cpu_share: float | None = None
    load_average: float | None = None
    engine: dict[str, str] = {}
    client: dict[str, str] = {}


class Target(Record):
    """The server. `url` is its root, without /v1."""

    url: str
    model: str


class Lag(Record):
    """How late the client was."""

    p50: float
    p99: float
    worst: float


class ClientHealth(Record):
    """The client's own part in what was measured.

    Attributes:
        send: of sending requests (`Rows.lag`).
        loop: of the event loops, by a heartbeat; percentiles of time, so that one long stall weighs
            as much as it lasted.
        cpu_share: of one core, of each process.
    """

    send: Lag
    loop: Lag
    cpu_share: tuple[float, ...]


class Warmup(Record):
    """Rounds of requests before the measured ones: the median end-to-end time of each, of the
    slowest process to become steady."""

    medians: tuple[float, ...]
    steady: bool


class Share(Record):
    """A share of requests with its 95 % interval (Wilson)."""

    value: float
    low: float
    high: float


class LoadResult(Record):
    """One load on one server.

    Attributes:
        measured_seconds: the load's duration; of a load that was given in requests, from the first
            one sent to the last one answered.
        inter_token: gaps between the pieces of text of one answer (a piece can hold several
            tokens).
        requests_per_second, tokens_per_second: answered within `measured_seconds`; new tokens,
            those of answers that it cuts in part.
        goodput_per_second: requests within the SLO and `measured_seconds`; None without an SLO.
        within_slo: share of all requests, failed ones being outside; None without an SLO.
        errors: how many requests ended how, without the good ones. `error_example`: what the server
            said to one of them.
        short: answers with fewer tokens than were asked for.
        problems: why the result is invalid; none if it is valid.
        notes: what the reader should know of a valid one.
    """

    load: Load
    target: Target
    environment: Environment
    since: datetime
    measured_seconds: float
    rows: Rows
    ttft: Percentiles
    tpot: Percentiles
    inter_token: Percentiles
    inter_token_histogram: Histogram
    e2e: Percentiles
    requests_per_second: float
    tokens_per_second: float
    goodput_per_second: float | None
    within_slo: Share | None
    errors: dict[str, int]
    error_example: str = ""
    short: int
    counted_by_server: bool
    client: ClientHealth
    warmup: Warmup
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def valid(self) -> bool:
        return not self.problems


class LoadReport(Record):
    """All loads on one variant, as a measurement artifact holds them in `LOAD`."""

    variant: str
    model: str
    results: tuple[LoadResult, ...]


def read_load(artifact: ModelArtifact) -> LoadReport:
    """The record of a load test's artifact."""
    return LoadReport.model_validate_json((artifact.path / LOAD).read_bytes())


class RatioInterval(Record):
    """The second server's figure over the first one's, one value a round.

    Attributes:
        rounds: the paired ratios.
        median: of them.
        low, high: its 95 % interval, by inverting the exact signed-rank test.
        bootstrap_low, bootstrap_high: the percentile bootstrap interval of the median, which is too
            short with few rounds.
        smallest_seen: the relative difference that would be seen nine times in ten, with this
            noise, these rounds and the tolerance.
    """

    metric: Metric
    rounds: tuple[float, ...]
    median: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float
    smallest_seen: float


Outcome = Literal["slower", "faster", "no difference seen", "invalid"]


class SpeedComparison(Record):
    """Two servers, interleaved.

    Attributes:
        tolerance: the relative difference up to which they count as equally fast; the interval must
            lie beyond it as a whole.
        outcome: what the ratio of `metric` says of the second server; the other ratios are for
            reading.
        problems: why the outcome is "invalid"; none otherwise.
        environments: of the first and of the second server, over the whole comparison.
    """

    first: Target
    second: Target
    load: Load
    fingerprint: dict[str, str]
    since: datetime
    metric: Metric
    tolerance: float
    ratios: tuple[RatioInterval, ...]
    outcome: Outcome
    problems: tuple[str, ...]
    environments: tuple[Environment, Environment]

    def ratio(self, metric: Metric) -> RatioInterval:
        return next(ratio for ratio in self.ratios if ratio.metric == metric)
