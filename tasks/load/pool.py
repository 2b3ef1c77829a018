"""The processes of the load generator: started together, commanded together, and gone with whoever
started them."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from artifacts.records.load_results import OK, Load, Warmup
from configs.errors import EndpointError, LoadClientDied
from configs.paths import process_environment
from tasks.load.arrivals import deal, poisson, shares, workers_for
from tasks.load.prompts import WordCount, fit
from tasks.load.stream import Service
from tasks.runner.output import last_lines
from tasks.runner.process import Streams, module_command, start

READY_SECONDS = 120.0
START_SECONDS = 0.1  # from the command to the first request: all processes have it by then
PROBE_WORDS = (64, 16, 32, 64)
MAX_STREAM_SECONDS = 24 * 3600.0

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Measured:
    """The raw figures of a run: columns over all requests, ordered by start (`worker.save` names
    them), and the client's health."""

    columns: Columns
    gaps: npt.NDArray[np.float32]
    heartbeat: npt.NDArray[np.float64]
    cpu_share: tuple[float, ...]
    detail: str


class Pool:
    """Processes that send requests. A context manager: they run from its beginning to its end.

    Args:
        processes: how many.

    Raises:
        LoadClientDied: from every method, when a process ended that should not.
        EndpointError: when the server answers no request at all.
    """

    def __init__(self, processes: int) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="lmflows-load-")
        self._workers: list[subprocess.Popen[bytes]] = []
        self._runs = 0
        try:
            for number in range(processes):
                with self._log(number).open("wb") as log:
                    self._workers.append(
                        start(
                            module_command("tasks.load.worker"),
                            Streams(subprocess.PIPE, stderr=log, stdin=subprocess.PIPE),
                            environment=process_environment(),
                            own_session=False,
                        )
                    )
            # so that all can start at one time
            self._replies(self._workers, time.monotonic() + READY_SECONDS)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(worker.pid for worker in self._workers)

    def close(self) -> None:
        """End all processes, now."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                with suppress(BrokenPipeError):
                    assert pipe is not None
                    pipe.close()
        self._scratch.cleanup()

    def count_words(self, service: Service, seed: int) -> WordCount:
        """How many tokens the server makes of words; the typical number if it does not count."""
        command = {
            "do": "probe",
            "service": asdict(service) | {"new_tokens": 1},
            "words": PROBE_WORDS,
            "seed": seed + 500_000,
        }
        deadline = time.monotonic() + len(PROBE_WORDS) * service.timeout_s
        [reply] = self._all([command], deadline)
        _require_answered(reply, service)
        return fit([(words, tokens) for words, tokens in reply["counts"]])

    def warm_up(self, service: Service, load: Load, words: int) -> Warmup:
        """Requests that do not count, in rounds, until their time is steady; the slowest process
        decides."""
        count = workers_for(load)
        slots = shares(load.concurrency or 2 * count, count)
        replies = self._all(
            [
                {
                    "do": "warm",
                    "service": asdict(service),
                    "slots": slots[number],
                    "words": words,
                    "seed": load.seed + 700_000 + number,
                }
                for number in range(count)
            ],
            time.monotonic() + MAX_STREAM_SECONDS,
        )
        for reply in replies:
            if not reply["medians"]:
                _require_answered(reply, service)
        slowest = max(replies, key=lambda reply: (not reply["steady"], len(reply["medians"])))
        return Warmup(medians=tuple(slowest["medians"]), steady=slowest["steady"])

    def run(self, service: Service, load: Load, words: int) -> Measured:
        """Send the requests of a load, and gather what came of them."""
        self._runs += 1
        count = workers_for(load)
        outputs = [
            str(Path(self._scratch.name) / f"run-{self._runs}-{number}.npz")
            for number in range(count)
        ]
        parts = _closed_parts(load, count) if load.concurrency else _open_parts(load, count)
        common = {
            "do": "run",
            "service": asdict(service),
            "words": words,
            "seed": load.seed,
            "start_at": time.monotonic() + START_SECONDS,
        }
        replies = self._all(
            [
                common | part | {"output": output}
                for part, output in zip(parts, outputs, strict=True)
            ],
            time.monotonic() + _longest(load),
        )
        return _gather([dict(np.load(output, allow_pickle=False)) for output in outputs], replies)

    def _log(self, number: int) -> Path:
        return Path(self._scratch.name) / f"worker-{number}.log"

    def _all(self, commands: Sequence[dict[str, Any]], deadline: float) -> list[dict[str, Any]]:
        """Tell the first processes what to do, and wait for all of them."""
        busy = self._workers[: len(commands)]
        for number, (worker, command) in enumerate(zip(busy, commands, strict=True)):
            assert worker.stdin is not None
            try:
                worker.stdin.write(json.dumps(command).encode() + b"\n")
                worker.stdin.flush()
            except BrokenPipeError:
                raise self._died(number) from None
        return self._replies(busy, deadline)

    def _replies(
        self, busy: Sequence[subprocess.Popen[bytes]], deadline: float
    ) -> list[dict[str, Any]]:
        """One line of each process."""
        lines = [b"" for _ in busy]
        with selectors.DefaultSelector() as selector:
            for number, worker in enumerate(busy):
                assert worker.stdout is not None
                selector.register(worker.stdout, selectors.EVENT_READ, number)
            while not all(line.endswith(b"\n") for line in lines):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise LoadClientDied(
                        "a process of the load generator does not answer",
                        where="load generator",
                        hint=(
                            "the machine may be overloaded, or the process was stopped; try again"
                            " with fewer processes"
                        ),
                    )
                for key, _ in ready:
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        raise self._died(key.data)
                    lines[key.data] += data
        return [json.loads(line) for line in lines]

    def _died(self, number: int) -> LoadClientDied:
        worker = self._workers[number]
        return LoadClientDied(
            f"process {number} of the load generator (pid {worker.pid}) ended with status"
            f" {worker.wait()}; {last_lines(self._log(number))}",
            where="load generator",
            hint=(
                "status -9 is a kill, by the kernel when memory runs out; what was measured until"
                " then is dropped"
            ),
        )


def _closed_parts(load: Load, count: int) -> list[dict[str, Any]]:
    slots = shares(load.concurrency or 1, count)
    requests = shares(load.requests or 0, count)
    return [
        {
            "slots": slots[number],
            "requests": requests[number] or None,
            "duration": load.duration_seconds,
            "first": number * 10_000_000,
        }
        for number in range(count)
    ]


def _open_parts(load: Load, count: int) -> list[dict[str, Any]]:
    assert load.rate_per_second is not None
    times = poisson(
        load.rate_per_second,
        seed=load.seed,
        requests=load.requests,
        duration_seconds=load.duration_seconds,
    )
    return [{"arrivals": part} for part in deal(times, count)]


def _longest(load: Load) -> float:
    """Seconds after which a run cannot be going on any more: every request has its limit."""
    requests = load.requests or 1
    if load.duration_seconds:
        span = load.duration_seconds
    elif load.rate_per_second is not None:
        span = 10 * requests / load.rate_per_second + 60
    else:
        span = (requests / (load.concurrency or 1) + 1) * load.request_timeout_seconds
    return span + 2 * load.request_timeout_seconds + 60


def _gather(parts: Sequence[Columns], replies: Sequence[dict[str, Any]]) -> Measured:
    names = [name for name in parts[0] if name not in ("gaps", "heartbeat")]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    gaps = np.concatenate([part["gaps"] for part in parts])
    order = np.argsort(columns["start"], kind="stable")
    pieces = np.split(gaps, np.cumsum(columns["gap_counts"])[:-1]) if len(order) else []
    return Measured(
        columns={name: values[order] for name, values in columns.items()},
        gaps=np.concatenate([*(pieces[index] for index in order), np.empty(0, np.float32)]),
        heartbeat=np.concatenate([part["heartbeat"] for part in parts]),
        cpu_share=tuple(round(reply["cpu_share"], 4) for reply in replies),
        detail=next((reply["detail"] for reply in replies if reply["detail"]), ""),
    )


def _require_answered(reply: dict[str, Any], service: Service) -> None:
    if reply["status"] != OK:
        raise EndpointError(
            f"a first request failed: {reply['status']} {reply['detail']}".strip(),
            where=service.url,
            hint=(
                "check the address, the model's name and the API key; `lmflows status` lists this"
                " machine's endpoints"
            ),
        )
