"""`python -m benchmarks.load`: does the comparison of two servers find a slowdown of 5 %, and how
often one that is not there?

Real servers with known delays (`tests.support.slow_server`), whose requests vary by 5 % from one to
the next. A planted slowdown must be found in at least 9 of 10 trials, with at most 1 false alarm in
20 trials without one. Then what the generator measures of a known server, and how many requests a
second one of its processes can send. Prints tables; `--json FILE` writes the raw figures.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from artifacts.records.load_results import Load, SpeedComparison
from tasks.load.compare import ComparisonPlan, compare_servers
from tasks.load.environment import fingerprint
from tasks.load.run import run_loads
from tasks.load.target import Server, at_url
from tests.support.slow_server import running

SPEED = {"ttft": 0.04, "tpot": 0.01, "jitter": 0.05}
PLANTED, NONE = 10, 20
FOUND_AT_LEAST, ALARMS_AT_MOST = 9, 1


def trial(first: Server, second: Server, number: int, rounds: int) -> tuple[SpeedComparison, float]:
    """One comparison, and its wall seconds."""
    load = Load(
        concurrency=8,
        requests=16,
        prompt_tokens=32,
        new_tokens=12,
        seed=10_000 * number,
        max_lag_seconds=0.1,
    )
    started = time.monotonic()
    comparison = compare_servers(first, second, ComparisonPlan(load=load, rounds=rounds))
    return comparison, time.monotonic() - started


def rates(rounds: int) -> dict[str, Any]:
    """Trials with and without a planted slowdown."""
    with (
        running(**SPEED) as plain,
        running(**SPEED, seed=1) as same,
        running(**SPEED, seed=2, slowdown=1.05) as slow,
    ):
        kinds = {"5 % slower": (at_url(slow), PLANTED), "the same": (at_url(same), NONE)}
        found: dict[str, Any] = {"rounds": rounds, "hardware": fingerprint(plain)}
        for kind, (server, trials) in kinds.items():
            rows: list[dict[str, Any]] = []
            number = 0
            # one that says nothing is taken again
            while sum(row["outcome"] != "invalid" for row in rows) < trials and number < 2 * trials:
                comparison, seconds = trial(at_url(plain), server, number, rounds)
                number += 1
                ratio = comparison.ratio("e2e")
                rows.append(
                    {
                        "outcome": comparison.outcome,
                        "ratio": ratio.median,
                        "low": ratio.low,
                        "high": ratio.high,
                        "would be seen": ratio.smallest_seen,
                        "bootstrap": [ratio.bootstrap_low, ratio.bootstrap_high],
                        "seconds": seconds,
                        "problems": comparison.problems,
                        "load_average": os.getloadavg()[0],
                    }
                )
                print(
                    f"{kind:<12}{number:3}  {comparison.outcome:<20}{ratio.median:.4f}"
                    f" ({ratio.low:.4f} to {ratio.high:.4f})  would be seen:"
                    f" {ratio.smallest_seen:.1%}  {seconds:.0f} s",
                    flush=True,
                )
            found[kind] = rows
    found["found"] = sum(row["outcome"] == "slower" for row in found["5 % slower"])
    found["false alarms"] = sum(row["outcome"] in ("slower", "faster") for row in found["the same"])
    found["invalid"] = sum(row["outcome"] == "invalid" for kind in kinds for row in found[kind])
    return found


def accuracy() -> list[dict[str, float]]:
    """What is measured of a server whose delays are known, and what the client adds."""
    rows = []
    with running(ttft=0.05, tpot=0.01) as url:
        for concurrency in (1, 8, 32):
            load = Load(
                concurrency=concurrency,
                requests=max(40, 8 * concurrency),
                prompt_tokens=64,
                new_tokens=20,
                max_lag_seconds=0.1,
            )
            result = run_loads(at_url(url), [load])[0]
            medians = {
                f"{name}_ms": 1e3 * (values.at(50).value or 0.0)
                for name, values in (("ttft", result.ttft), ("tpot", result.tpot))
            }
            rows.append(
                medians
                | {
                    "concurrency": concurrency,
                    "loop_lag_p99_ms": 1e3 * result.client.loop.p99,
                    "cpu_share": max(result.client.cpu_share),
                }
            )
    return rows


def capacity() -> list[dict[str, Any]]:
    """One process of the client at rates that rise until it cannot keep up."""
    rows = []
    with running(ttft=0.005, tpot=0.001) as url:
        for rate in (50, 100, 200, 400, 800):
            load = Load(rate_per_second=rate, duration_seconds=3, prompt_tokens=64, new_tokens=8)
            result = run_loads(at_url(url), [load])[0]
            rows.append(
                {
                    "rate": rate,
                    "lag_p99_ms": 1e3 * result.client.send.p99,
                    "cpu_share": max(result.client.cpu_share),
                    "problems": result.problems,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    accurate = accuracy()
    sent = capacity()
    outcome = rates(options.rounds)
    for row in accurate:
        print(
            "50 ms and 10 ms a token, at concurrency {concurrency}: TTFT {ttft_ms:.1f} ms, TPOT"
            " {tpot_ms:.2f} ms; event loop late by {loop_lag_p99_ms:.1f} ms (p99), {cpu_share:.0%}"
            " of a core".format(**row)
        )
    for step in sent:
        print(
            "{rate} requests/s from one process: sent late by {lag_p99_ms:.1f} ms (p99),"
            " {cpu_share:.0%} of a core, ".format(**step)
            + ("; ".join(step["problems"]) or "valid")
        )
    print(
        f"5 % slower: found in {outcome['found']} of {PLANTED} (at least {FOUND_AT_LEAST}); the"
        f" same: {outcome['false alarms']} false alarms in {NONE} (at most {ALARMS_AT_MOST});"
        f" {outcome['invalid']} invalid"
    )
    if options.json:
        figures = {"accuracy": accurate, "capacity": sent, "rates": outcome}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if outcome["found"] < FOUND_AT_LEAST or outcome["false alarms"] > ALARMS_AT_MOST:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
