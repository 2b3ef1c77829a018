"""The `load` section of a pipeline config: how each variant is put under load, and what counts as
good service. The stored results (`artifacts.records.load_results`) use the limits, too."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.section import Lax, Section

Api = Literal["completions", "chat"]
Concurrency = Annotated[int, Field(ge=1, le=65_536)]
Rate = Annotated[float, Field(gt=0, le=1e6)]


class Slo(Section):
    """Limits of good service, each for one request. One that is left out limits nothing."""

    ttft_ms: float | None = Field(default=None, gt=0, description="time to the first token")
    tpot_ms: float | None = Field(
        default=None, gt=0, description="time per token after the first, the request's mean"
    )
    e2e_ms: float | None = Field(default=None, gt=0, description="time to the last token")

    @property
    def given(self) -> bool:
        return any(limit is not None for limit in (self.ttft_ms, self.tpot_ms, self.e2e_ms))


class LoadTest(Section):
    """A sweep of loads against a server: each concurrency as a closed loop, then each rate as an
    open loop of Poisson arrivals."""

    concurrencies: Lax[tuple[Concurrency, ...]] = Field(
        default=(1, 8, 32), description="requests that are kept in flight"
    )
    rates_per_second: Lax[tuple[Rate, ...]] = Field(
        default=(), description="requests that arrive a second, answered or not"
    )
    duration_seconds: float = Field(
        default=30, gt=0, le=24 * 3600, description="how long each load lasts"
    )
    requests: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="send that many at each load instead of for a time",
    )
    prompt_tokens: int = Field(
        default=512, ge=1, description="by the server's own count, as near as whole words come"
    )
    new_tokens: int = Field(default=128, ge=1)
    api: Api = "completions"
    slo: Slo = Slo()
    processes: int | None = Field(
        default=None, ge=1, le=64, description="of the client; default: half the cores, 1 to 8"
    )
    seed: int = Field(default=0, ge=0)
    request_timeout_seconds: float = Field(default=300, gt=0)
    max_lag_ms: float = Field(
        default=20, gt=0, description="p99 of the client's own lag beyond which a result is invalid"
    )
    max_error_share: float = Field(
        default=0.01, ge=0, lt=1, description="of the requests, beyond which a result is invalid"
    )
    timeout_minutes: float = Field(default=120, gt=0, le=7 * 24 * 60)

    @model_validator(mode="after")
    def _some_load(self) -> Self:
        if not self.concurrencies and not self.rates_per_second:
            raise ValueError(
                "concurrencies and rates_per_second are both empty: name at least one load"
            )
        return self
