"""One model through several engine runtimes: which is faster, by how much, and do they still say
the same?

All engines are loaded side by side and take turns, so that a GPU that warms up or clocks down slows
all of them alike; if they do not fit together, each turn loads its engine anew. What a team asks
before it upgrades its engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt
import pydantic
from pydantic import Field, field_validator

from artifacts.records.evidence import DocumentScore
from artifacts.records.measurement import Scores, Speed
from configs.engines import Engine, EngineTransformers
from configs.errors import EngineError, LmflowsError, SourceError
from configs.evaluation import Benchmark
from configs.texts import PythonDocs, TextFile
from configs.variants import KvBits
from tasks.checkpoints import files
from tasks.engines.documents import score_all
from tasks.engines.process import EngineProcess
from tasks.engines.protocol import EngineSpec
from tasks.engines.speed import one_round
from tasks.machine import gpus
from tasks.quality.divergence import compare
from tasks.quality.documents import read_source
from tasks.runner.step import Context, Request, Result, step

T = TypeVar("T")
RESAMPLES = 10_000
# of each engine beside its weights: context, workspace, a KV cache large enough for the batches
MARGIN_BYTES = 4_000_000_000
CONFIDENCE = 0.95
BATCH = 8  # documents that are scored at once


class CompareRuntimesRequest(Request):
    """`runtimes`: the first is the one that the others are compared with. `documents` of `texts`
    are scored, each to `longest` tokens."""

    folder: Path
    digest: str | None
    engine: Engine
    kv_bits: KvBits = 0
    runtimes: tuple[str, ...] = Field(min_length=1)
    benchmark: Benchmark
    texts: PythonDocs | TextFile
    documents: int = 8
    longest: int = 512
    prompts: tuple[str, ...]
    new_tokens: int = 48
    hardware: dict[str, str]
    trust_remote_code: bool = False

    @property
    def limit_minutes(self) -> float:
        return 240.0

    @field_validator("runtimes")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"{', '.join(twice)} is named more than once")
        return names


class Ratio(pydantic.BaseModel):
    """Tokens per second over those of the first runtime: median over the rounds, with the bootstrap
    interval of the median."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    batch_size: int
    median: float
    low: float
    high: float


class RuntimeFigures(pydantic.BaseModel):
    """One runtime. `agreement` and `same_answers` are against the first one; a `problem` says why
    there are no figures."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    runtime: str
    versions: dict[str, str] = {}
    problem: str | None = None
    speeds: tuple[Speed, ...] = ()
    decode_ratio: tuple[Ratio, ...] = ()
    prefill_ratio: tuple[Ratio, ...] = ()
    agreement: DocumentScore | None = None
    same_answers: int = 0
    answers: tuple[str, ...] = ()


class CompareRuntimesResult(Result):
    """`side_by_side`: whether all engines were loaded at once. `hardware` is what they ran on."""

    figures: tuple[RuntimeFigures, ...]
    side_by_side: bool
    hardware: dict[str, str]


@dataclass(frozen=True)
class Quality:
    """What one runtime makes of the held-out documents and of the prompts."""

    scores: list[Scores]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """What every runtime scores and answers: token ids, and the tokens at which distributions are
    compared."""

    sequences: list[list[int]]
    prompts: list[list[int]]
    at: list[npt.NDArray[np.int32]] | None


@step(gpu=True, cached=False)
def compare_runtimes(request: CompareRuntimesRequest, context: Context) -> CompareRuntimesResult:
    """Run one model through several engine runtimes by turns, and compare their speed and their
    scores."""
    together = fit_together(request)
    quality: dict[str, Quality] = {}
    rounds: dict[str, list[dict[int, tuple[float, float]]]] = {
        name: [] for name in request.runtimes
    }
    with Turns(request, context, together) as turns:
        subject: Subject | None = None
        for name in request.runtimes:

            def examine(
                engine: EngineProcess, known: Subject | None = subject
            ) -> tuple[Subject, Quality]:
                asked = known or find_subject(engine, request)
                return asked, judge(engine, asked, request)

            if examined := turns.take(name, examine):
                subject, quality[name] = examined
                subject = (
                    subject
                    if subject.at
                    else replace(subject, at=[score.ids for score in quality[name].scores])
                )
        # side by side, the first one warms all of them up
        for number in range(-1 if together else 0, request.benchmark.rounds):
            for name in request.runtimes if number % 2 else reversed(request.runtimes):  # A B B A

                def measure(
                    engine: EngineProcess, seed: int = number + 2
                ) -> dict[int, tuple[float, float]]:
                    sizes = request.benchmark.batch_sizes
                    if not together:  # it was loaded for this turn
                        for size in sizes:
                            one_round(engine, request.benchmark, size, seed=1)
                    return {
                        size: one_round(engine, request.benchmark, size, seed=seed)
                        for size in sizes
                    }

                figures = turns.take(name, measure)
                if figures and number >= 0:
                    rounds[name].append(figures)
    first = next((name for name in request.runtimes if name not in turns.problems), None)
    if first is None:
        raise EngineError(
            "; ".join(f"{name}: {problem}" for name, problem in turns.problems.items()),
            where="every runtime",
            hint=(
                "`lmflows engines ls` shows the runtimes; the engines' logs lie in the run's folder"
            ),
        )
    outcome = tuple(
        (
            RuntimeFigures(
                runtime=name, versions=turns.versions.get(name, {}), problem=turns.problems[name]
            )
            if name in turns.problems
            else summarize(name, first, request.benchmark, turns.versions[name], rounds, quality)
        )
        for name in request.runtimes
    )
    return CompareRuntimesResult(figures=outcome, side_by_side=together, hardware=request.hardware)


class Turns:
    """The engines of the runtimes, of which one works at a time. One that fails is out, with the
    reason in `problems`."""

    def __init__(self, request: CompareRuntimesRequest, context: Context, together: bool) -> None:
        self.request, self.context, self.together = request, context, together
        self.problems: dict[str, str] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self._stack, self._open, self._taken = ExitStack(), dict[str, EngineProcess](), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, name: str, job: Callable[[EngineProcess], T]) -> T | None:
        """Let a runtime's engine do a job; None if it fails, now or earlier."""
        if name in self.problems:
            return None
        self.context.progress(
            self._taken / (len(self.request.runtimes) * (self.request.benchmark.rounds + 2)),
            f"{name} at work",
        )
        self._taken += 1
        try:
            if self.together:
                return job(self._open.get(name) or self._load(name))
            with self._start(name) as engine:
                return job(engine)
        except LmflowsError as error:
            self.context.log(str(error))
            self.problems[name] = error.message
            return None

    def _load(self, name: str) -> EngineProcess:
        self._open[name] = self._stack.enter_context(self._start(name))
        return self._open[name]

    def _start(self, name: str) -> EngineProcess:
        """Start an engine whose KV cache leaves room for the others'."""
        options, share = (
            self.request.engine,
            0.8 / (len(self.request.runtimes) if self.together else 1),
        )
        cache = (
            {}
            if isinstance(options, EngineTransformers)
            else {"cache_max_entry_count": min(options.cache_max_entry_count, share)}
        )
        engine = options.model_copy(update={"runtime": name, **cache})
        spec = EngineSpec(
            folder=self.request.folder,
            engine=engine,
            kv_bits=self.request.kv_bits,
            trust_remote_code=self.request.trust_remote_code,
        )
        process = EngineProcess(spec, log=self.context.scratch(f"engine-{name}.log"))
        self.versions[name] = process.versions
        return process


def fit_together(request: CompareRuntimesRequest) -> bool:
    """Whether the GPU has room for all engines at once."""
    needed = len(request.runtimes) * (int(1.2 * files.inspect(request.folder).bytes) + MARGIN_BYTES)
    return all(free > needed for free in gpus.free_bytes()[: request.engine.tp])


def find_subject(engine: EngineProcess, request: CompareRuntimesRequest) -> Subject:
    """The first documents that have something to score, and the prompts, as token ids."""
    records = (
        engine.encode(record)[: request.longest]
        for record in islice(read_source(request.texts), 4 * request.documents)
    )
    sequences = list(islice((ids for ids in records if len(ids) >= 2), request.documents))
    if not sequences:
        raise SourceError("no document has two tokens", where="texts", hint="give longer documents")
    return Subject(
        sequences,
        [engine.prompt_ids([{"role": "user", "content": prompt}]) for prompt in request.prompts],
        None,
    )


def judge(engine: EngineProcess, subject: Subject, request: CompareRuntimesRequest) -> Quality:
    """Score the documents and answer the prompts."""
    scores = score_all(engine, subject.sequences, subject.at, BATCH)
    return Quality(
        scores, tuple(engine.generate([ids], request.new_tokens)[0].text for ids in subject.prompts)
    )


def summarize(
    name: str,
    first: str,
    config: Benchmark,
    versions: dict[str, str],
    rounds: dict[str, list[dict[int, tuple[float, float]]]],
    quality: dict[str, Quality],
) -> RuntimeFigures:
    """One runtime's figures, and how they compare with the first one's."""
    mine, theirs = quality[name], quality[first]
    documents = [compare(one, other) for one, other in zip(theirs.scores, mine.scores, strict=True)]
    agreement = DocumentScore.model_validate(
        {
            field: sum(getattr(document, field) for document in documents)
            for field in DocumentScore.model_fields
        }
    )

    def ratios(which: int) -> tuple[Ratio, ...]:
        if name == first:
            return ()
        return tuple(
            ratio(
                size,
                [
                    mine[size][which] / theirs[size][which]
                    for mine, theirs in zip(rounds[name], rounds[first], strict=True)
                ],
            )
            for size in config.batch_sizes
        )

    return RuntimeFigures(
        runtime=name,
        versions=versions,
        agreement=agreement,
        answers=mine.answers,
        prefill_ratio=ratios(0),
        decode_ratio=ratios(1),
        same_answers=sum(
            one == other for one, other in zip(mine.answers, theirs.answers, strict=True)
        ),
        speeds=tuple(
            Speed(
                batch_size=size,
                prompt_tokens=config.prompt_tokens,
                new_tokens=config.new_tokens,
                prefill=tuple(one[size][0] for one in rounds[name]),
                decode=tuple(one[size][1] for one in rounds[name]),
            )
            for size in config.batch_sizes
        ),
    )


def ratio(batch_size: int, values: Sequence[float]) -> Ratio:
    """The median of paired ratios, one a round, with the percentile bootstrap interval of that
    median (95 %, seeded).

    Up to five rounds that is the range of the ratios: three of them hold the true median three
    times in four, five 94 times in 100.
    """
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(np.asarray(values), size=(RESAMPLES, len(values))), axis=1)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Ratio(
        batch_size=batch_size, median=float(np.median(values)), low=float(low), high=float(high)
    )
