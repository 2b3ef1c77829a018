"""Two servers under interleaved load: is the second one slower, by what ratio, and what could have
been seen?

Each round is A B B A, and the next B A A B, so that what drifts steadily on the machine is on both
sides alike. A round gives one ratio per metric. Under no difference its logarithm is as likely
above zero as as far below: that is all that the exact signed-rank test assumes, and the interval is
the set of ratios that it does not refuse.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Self, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import stats

from artifacts.records.load_results import OK, Load, Metric, Outcome, RatioInterval, SpeedComparison
from configs.callbacks import Progress, no_progress
from tasks.load.environment import Watch, fingerprint, require_same
from tasks.load.metrics import tokens_of, tpot_of
from tasks.load.pool import Measured, Pool
from tasks.load.target import Server
from tasks.load.validity import client_problems, error_problems, errors_of, health

MIN_ROUNDS = 6  # with fewer no result of the signed-rank test is rarer than one in twenty
CONFIDENCE, POWER = 0.95, 0.9
# two processes of one program differ by that much on a busy machine, for as long as they run
TOLERANCE = 0.01
RESAMPLES = 2_000
SIGNED_RANK_EFFICIENCY = 0.955  # beside the t test, of normal values
METRICS: tuple[Metric, ...] = get_args(Metric)
Round = tuple[list[Measured], list[Measured]]  # the turns of the first and of the second server
# which server's turn it is
EVEN_ROUND, ODD_ROUND = (0, 1, 1, 0), (1, 0, 0, 1)
TURNS = len(EVEN_ROUND)


class ComparisonPlan(BaseModel):
    """How two servers are compared.

    Attributes:
        load: of one turn: it should be short, and given in requests. There are four turns a round,
            and one round that does not count.
        metric: what the outcome is about; the others' ratios are for reading only, or the false
            alarms would add up.
        tolerance: the relative difference up to which two servers count as equally fast.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    load: Load
    rounds: int = Field(default=10, ge=MIN_ROUNDS, le=1000)
    metric: Metric = "e2e"
    tolerance: float = Field(default=TOLERANCE, ge=0, lt=1)

    @model_validator(mode="after")
    def _has_the_metric(self) -> Self:
        if self.metric == "tpot" and self.load.new_tokens < 2:
            raise ValueError("an answer of one token has no time per token")
        return self


def compare_servers(
    first: Server, second: Server, plan: ComparisonPlan, progress: Progress = no_progress
) -> SpeedComparison:
    """Put two servers under the same load, their turns interleaved.

    Raises:
        DifferentHardware: they do not run on the same hardware and driver; nothing was sent.
        EndpointError: a server answers no request.
    """
    prints = [fingerprint(server.target.url, server.gpus) for server in (first, second)]
    require_same(prints[0], prints[1])
    since = datetime.now(UTC)
    with (
        Watch(first.target.url, first.engine, first.gpus) as first_watch,
        Watch(second.target.url, second.engine, second.gpus) as second_watch,
        Pool(plan.load.processes) as pool,
    ):
        rounds, steady = _take_turns(pool, (first, second), plan, progress)
    ratios = ratios_of(rounds, plan.tolerance)
    decisive = next((ratio for ratio in ratios if ratio.metric == plan.metric), None)
    problems = _problems(rounds, plan.load, steady)
    if decisive is None and not problems:
        problems = ("a turn has no such figure",)
    return SpeedComparison(
        first=first.target,
        second=second.target,
        load=plan.load,
        fingerprint=prints[0],
        since=since,
        metric=plan.metric,
        tolerance=plan.tolerance,
        ratios=ratios,
        problems=problems,
        outcome=(
            "invalid" if problems or decisive is None else outcome_of(decisive, plan.tolerance)
        ),
        environments=(first_watch.environment(), second_watch.environment()),
    )


def _take_turns(
    pool: Pool, servers: tuple[Server, Server], plan: ComparisonPlan, progress: Progress
) -> tuple[list[Round], bool]:
    """The rounds that count, and whether both servers became steady before."""
    load = plan.load
    words = pool.count_words(servers[0].service(load), load.seed).words(load.prompt_tokens)
    steady = [pool.warm_up(server.service(load), load, words).steady for server in servers]
    progress(0.0, "warm-up")
    _one_round(pool, servers, load, words, -1)
    rounds = []
    for number in range(plan.rounds):
        progress(number / plan.rounds, f"round {number + 1} of {plan.rounds}")
        rounds.append(_one_round(pool, servers, load, words, number))
    return rounds, all(steady)


def _one_round(
    pool: Pool, servers: tuple[Server, Server], load: Load, words: int, number: int
) -> Round:
    turns: Round = ([], [])
    for place, which in enumerate(EVEN_ROUND if number % 2 == 0 else ODD_ROUND):
        # each turn its own prompts: both servers may be one
        seed = load.seed + 1 + TURNS * (number + 1) + place
        service = servers[which].service(load)
        turns[which].append(pool.run(service, load.model_copy(update={"seed": seed}), words))
    return turns


def figures(measured: Measured) -> dict[Metric, float]:
    """What a turn says: medians over its good requests, in seconds, and tokens per second; a figure
    that it does not have is left out."""
    columns = measured.columns
    good = columns["status"] == OK
    found: dict[Metric, float] = {}
    times: dict[Metric, npt.NDArray[np.float64]] = {
        "ttft": columns["ttft"],
        "tpot": tpot_of(columns),
        "e2e": columns["e2e"],
    }
    for metric, values in times.items():
        known = values[good & ~np.isnan(values)]
        median = float(np.median(known)) if len(known) else 0.0
        if median > 0:
            found[metric] = median
    if good.any():
        span = float((columns["start"] + columns["e2e"]).max() - columns["start"].min())
        found["tokens_per_second"] = float(tokens_of(columns)[good].sum()) / span
    return found


def ratios_of(rounds: Sequence[Round], tolerance: float) -> tuple[RatioInterval, ...]:
    """The second server's figures over the first one's, of each metric that every turn has. A
    round's figure is the geometric mean of its two turns."""
    sides = [[[figures(turn) for turn in side] for side in pair] for pair in rounds]
    found = []
    for metric in METRICS:
        if all(metric in turn for pair in sides for side in pair for turn in side):
            ratios = [_mean(second, metric) / _mean(first, metric) for first, second in sides]
            found.append(interval(metric, ratios, tolerance))
    return tuple(found)


def interval(
    metric: Metric, ratios: Sequence[float], tolerance: float = TOLERANCE
) -> RatioInterval:
    """The median of paired ratios and its 95 % intervals.

    Args:
        ratios: one a round, at least MIN_ROUNDS, all above zero.
    """
    logs = np.log(np.asarray(ratios, float))
    count = len(logs)
    walsh = np.sort([(logs[i] + logs[j]) / 2 for i in range(count) for j in range(i, count)])
    place = signed_rank_place(count)
    medians = np.median(np.random.default_rng(0).choice(logs, size=(RESAMPLES, count)), axis=1)
    boot_low, boot_high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    deviation = statistics.stdev(logs.tolist())
    quantiles = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) + stats.t.ppf(POWER, count - 1)
    beyond = quantiles * deviation / math.sqrt(SIGNED_RANK_EFFICIENCY * count)
    seen = (1 + tolerance) * math.exp(beyond) - 1
    return RatioInterval(
        metric=metric,
        rounds=tuple(round(ratio, 6) for ratio in ratios),
        median=_ratio(float(np.median(logs))),
        low=_ratio(walsh[place - 1]),
        high=_ratio(walsh[-place]),
        bootstrap_low=_ratio(boot_low),
        bootstrap_high=_ratio(boot_high),
        smallest_seen=round(float(seen), 6),
    )


def signed_rank_place(count: int) -> int:
    """Which of the sorted Walsh averages, counted from 1 from either end, is the bound of the 95 %
    interval of the centre: one more than the largest rank sum with a chance of at most 2.5 %
    (exact; Hollander and Wolfe, Nonparametric Statistical Methods, 3.3)."""
    ways = np.zeros(count * (count + 1) // 2 + 1)
    ways[0] = 1
    for rank in range(1, count + 1):
        ways[rank:] += ways[:-rank].copy()
    chances = np.cumsum(ways) / 2.0**count
    return int(np.searchsorted(chances, (1 - CONFIDENCE) / 2, side="right"))


def outcome_of(ratio: RatioInterval, tolerance: float = TOLERANCE) -> Outcome:
    """What an interval says of the second server: it must lie beyond the tolerance as a whole."""
    more_is_slower = ratio.metric != "tokens_per_second"
    if ratio.low > 1 + tolerance:
        return "slower" if more_is_slower else "faster"
    if ratio.high < 1 / (1 + tolerance):
        return "faster" if more_is_slower else "slower"
    return "no difference seen"


def _problems(rounds: Sequence[Round], load: Load, steady: bool) -> tuple[str, ...]:
    """Why the comparison says nothing of the servers."""
    turns = [turn for pair in rounds for side in pair for turn in side]
    return (
        *client_problems(health(turns), load.max_lag_seconds),
        *_server_problems("first server", [turn for first, _ in rounds for turn in first], load),
        *_server_problems("second server", [turn for _, second in rounds for turn in second], load),
        *(() if steady else ("the warm-up never became steady",)),
    )


def _server_problems(name: str, turns: Sequence[Measured], load: Load) -> Iterator[str]:
    statuses = np.concatenate([turn.columns["status"] for turn in turns])
    for problem in error_problems(errors_of(statuses), len(statuses), load):
        yield f"{name}: {problem}"


def _mean(turns: Sequence[dict[Metric, float]], metric: Metric) -> float:
    return statistics.geometric_mean(turn[metric] for turn in turns)


def _ratio(log: float) -> float:
    return round(math.exp(log), 6)
