"""Two servers by turns: is the second one slower, by what ratio, and what could have been seen?

Each round is A B B A, and the next B A A B, so that what drifts steadily on the machine is on both
sides alike. A round gives one ratio per metric. Under no difference its logarithm is as likely
above zero as as far below: that is all that the exact signed-rank test assumes, and the interval is
the set of ratios that it does not refuse.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import get_args

import numpy as np
import numpy.typing as npt
from scipy import stats

from artifacts.records.load_results import OK, Load, Metric, Outcome, RatioInterval, SpeedComparison
from tasks.load.environment import Watch, fingerprint, require_same
from tasks.load.metrics import (
    client_problems,
    error_problems,
    errors_of,
    health,
    tokens_of,
    tpot_of,
)
from tasks.load.pool import Measured, Pool
from tasks.load.target import Server

MIN_ROUNDS = 6  # with fewer no result of the signed-rank test is rarer than one in twenty
CONFIDENCE, POWER = 0.95, 0.9
# two processes of one program differ by that much on a busy machine, for as long as they run
TOLERANCE = 0.01
RESAMPLES = 2_000
SIGNED_RANK_EFFICIENCY = 0.955  # beside the t test, of normal values
METRICS: tuple[Metric, ...] = get_args(Metric)
Round = tuple[list[Measured], list[Measured]]  # the turns of the first and of the second server


def compare_servers(
    first: Server,
    second: Server,
    load: Load,
    *,
    rounds: int = 10,
    metric: Metric = "e2e",
    tolerance: float = TOLERANCE,
    say: Callable[[int, str], None] = lambda _done, _text: None,
) -> SpeedComparison:
    """Put two servers under the same load by turns.

    Args:
        load: of one turn: it should be short, and given in requests. There are four turns a round,
            and one round that does not count.
        rounds: at least MIN_ROUNDS.
        metric: what the outcome is about; the others' ratios are for reading only, or the false
            alarms would add up.
        tolerance: the relative difference up to which two servers count as equally fast.
        say: is told the number of the round and a few words.

    Raises:
        DifferentHardware: they do not run on the same hardware and driver; nothing was sent.
        EndpointError: a server answers no request.
        ValueError: too few rounds.
    """
    if rounds < MIN_ROUNDS:
        raise ValueError(f"{rounds} rounds cannot tell a difference from chance, {MIN_ROUNDS} can")
    if metric == "tpot" and load.new_tokens < 2:
        raise ValueError("an answer of one token has no time per token")
    prints = [fingerprint(server.target.url, server.gpus) for server in (first, second)]
    require_same(prints[0], prints[1])
    since = datetime.now(UTC)
    with (
        Watch(first.target.url, first.engine, first.gpus) as one,
        Watch(second.target.url, second.engine, second.gpus) as two,
        Pool(load.processes) as pool,
    ):
        taken, steady = _take_turns(pool, (first, second), load, rounds, say)
    ratios = ratios_of(taken, tolerance)
    problems = _problems(taken, load, steady, metric in {ratio.metric for ratio in ratios})
    return SpeedComparison(
        first=first.target,
        second=second.target,
        load=load,
        fingerprint=prints[0],
        since=since,
        metric=metric,
        tolerance=tolerance,
        ratios=ratios,
        problems=problems,
        outcome=(
            "invalid"
            if problems
            else outcome_of(next(ratio for ratio in ratios if ratio.metric == metric), tolerance)
        ),
        environments=(one.environment(), two.environment()),
    )


def _take_turns(
    pool: Pool,
    servers: tuple[Server, Server],
    load: Load,
    rounds: int,
    say: Callable[[int, str], None],
) -> tuple[list[Round], bool]:
    """The rounds that count, and whether both servers became steady before."""
    taken: list[Round] = []
    words = pool.count_words(servers[0].service(load), load.seed).words(load.prompt_tokens)
    steady = [pool.warm_up(server.service(load), load, words).steady for server in servers]
    for number in range(-1, rounds):
        say(max(0, number), "warm-up" if number < 0 else f"round {number + 1} of {rounds}")
        pair: Round = ([], [])
        for place, which in enumerate((0, 1, 1, 0) if number % 2 == 0 else (1, 0, 0, 1)):
            # each turn its own prompts: both servers may be one
            seed = load.seed + 1 + 4 * (number + 1) + place
            pair[which].append(
                pool.run(
                    servers[which].service(load), load.model_copy(update={"seed": seed}), words
                )
            )
        if number >= 0:
            taken.append(pair)
    return taken, all(steady)


def figures(measured: Measured) -> dict[Metric, float]:
    """What a turn says: medians over its good requests, in seconds, and tokens per second; a figure
    that it does not have is left out."""
    columns = measured.columns
    good = columns["status"] == OK
    found: dict[Metric, float] = {}
    values: dict[Metric, npt.NDArray[np.float64]] = {
        "ttft": columns["ttft"],
        "tpot": tpot_of(columns),
        "e2e": columns["e2e"],
    }
    for metric, each in values.items():
        known = each[good & ~np.isnan(each)]
        if len(known) and (median := float(np.median(known))) > 0:
            found[metric] = median
    if good.any():
        span = float((columns["start"] + columns["e2e"]).max() - columns["start"].min())
        found["tokens_per_second"] = float(tokens_of(columns)[good].sum()) / span
    return found


def ratios_of(rounds: Sequence[Round], tolerance: float) -> tuple[RatioInterval, ...]:
    """The second server's figures over the first one's, of each metric that every turn has. A
    round's figure is the geometric mean of its two turns."""
    sides = [[[figures(turn) for turn in side] for side in pair] for pair in rounds]
    present = [
        metric
        for metric in METRICS
        if all(metric in turn for pair in sides for side in pair for turn in side)
    ]
    return tuple(
        interval(
            metric, [_mean(pair[1], metric) / _mean(pair[0], metric) for pair in sides], tolerance
        )
        for metric in present
    )


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
    seen = (1 + tolerance) * math.exp(
        quantiles * deviation / math.sqrt(SIGNED_RANK_EFFICIENCY * count)
    ) - 1
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


def _problems(
    rounds: Sequence[Round], load: Load, steady: bool, has_metric: bool
) -> tuple[str, ...]:
    """Why the comparison says nothing of the servers."""
    runs = [turn for pair in rounds for side in pair for turn in side]
    found = client_problems(health(runs), load.max_lag_seconds)
    for which, name in enumerate(("first", "second")):
        mine = [turn for pair in rounds for turn in pair[which]]
        statuses = {"status": np.concatenate([turn.columns["status"] for turn in mine])}
        found += [
            f"{name} server: {problem}"
            for problem in error_problems(errors_of(statuses), len(statuses["status"]), load)
        ]
    if not steady:
        found.append("the warm-up never became steady")
    if not has_metric and not found:
        found.append("a turn has no such figure")
    return tuple(found)


def _mean(turns: Sequence[dict[Metric, float]], metric: Metric) -> float:
    return statistics.geometric_mean(turn[metric] for turn in turns)


def _ratio(log: float) -> float:
    return round(math.exp(log), 6)
