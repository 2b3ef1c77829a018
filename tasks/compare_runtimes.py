"""One model through several engine runtimes: which is faster, by how much, and do they still say
the same?

All engines are loaded side by side and interleaved, so that a GPU that warms up or clocks down
slows all of them alike; if they do not fit together, each turn loads its engine anew. What a team
asks before it upgrades its engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from artifacts.records.evidence import DocumentScore
from artifacts.records.measurement import Scores, Speed
from artifacts.records.record import Record
from configs.engines import Engine
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
Round = dict[int, tuple[float, float]]  # prefill and decode tokens/s, by batch size
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


class Ratio(Record):
    """Tokens per second over those of the first runtime: median over the rounds, with the bootstrap
    interval of the median."""

    batch_size: int
    median: float
    low: float
    high: float


class RuntimeFigures(Record):
    """One runtime. `agreement` and `same_answers` are against the first one; a `problem` says why
    there are no figures."""

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


@dataclass(frozen=True)
class Measured:
    """One runtime's part: its quality, and its speeds of each round."""

    runtime: str
    versions: dict[str, str]
    quality: Quality
    rounds: list[Round]


@step(gpu=True, cached=False)
def compare_runtimes(request: CompareRuntimesRequest, context: Context) -> CompareRuntimesResult:
    """Run one model through several engine runtimes, interleaved, and compare their speed and their
    scores."""
    side_by_side = fit_together(request)
    with Turns(request, context, side_by_side) as turns:
        quality = score_and_answer(turns, request)
        rounds = time_rounds(turns, request)
    measured = {
        name: Measured(name, turns.versions[name], quality[name], rounds[name])
        for name in request.runtimes
        if name not in turns.problems
    }
    if not measured:
        raise EngineError(
            "; ".join(f"{name}: {problem}" for name, problem in turns.problems.items()),
            where="every runtime",
            hint=(
                "`lmflows engines ls` shows the runtimes; the engines' logs lie in the run's folder"
            ),
        )
    first = next(iter(measured.values()))
    failed = {
        name: RuntimeFigures(runtime=name, versions=turns.versions.get(name, {}), problem=problem)
        for name, problem in turns.problems.items()
    }
    worked = {
        name: summarize(runtime, first, request.benchmark) for name, runtime in measured.items()
    }
    figures = failed | worked
    return CompareRuntimesResult(
        figures=tuple(figures[name] for name in request.runtimes),
        side_by_side=side_by_side,
        hardware=request.hardware,
    )


def score_and_answer(turns: Turns, request: CompareRuntimesRequest) -> dict[str, Quality]:
    """The quality of each runtime that does not fail. The first one that works chooses the tokens
    at which all are compared."""
    quality: dict[str, Quality] = {}
    subject: Subject | None = None
    for name in request.runtimes:
        examined = turns.take(name, partial(examine, known=subject, request=request))
        if examined is not None:
            subject, quality[name] = examined
    return quality


def time_rounds(turns: Turns, request: CompareRuntimesRequest) -> dict[str, list[Round]]:
    """Each runtime's speeds, round by round, in the order A B, B A, A B, ..."""
    rounds: dict[str, list[Round]] = {name: [] for name in request.runtimes}
    # side by side, the first round warms all of them up; else each turn warms up its own engine
    for number in range(-1 if turns.side_by_side else 0, request.benchmark.rounds):
        job = partial(
            time_turn, config=request.benchmark, seed=number + 2, cold=not turns.side_by_side
        )
        for name in request.runtimes if number % 2 else reversed(request.runtimes):
            figures = turns.take(name, job)
            if figures and number >= 0:
                rounds[name].append(figures)
    return rounds


class Turns:
    """The engines of the runtimes, of which one works at a time. One that fails is out, with the
    reason in `problems`."""

    def __init__(
        self, request: CompareRuntimesRequest, context: Context, side_by_side: bool
    ) -> None:
        self.request = request
        self.context = context
        self.side_by_side = side_by_side
        self.problems: dict[str, str] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self._stack = ExitStack()
        self._open: dict[str, EngineProcess] = {}
        self._taken = 0

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
            if self.side_by_side:
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
        options = self.request.engine
        share = 0.8 / (len(self.request.runtimes) if self.side_by_side else 1)
        options = options.with_cache_share(share).model_copy(update={"runtime": name})
        spec = EngineSpec(
            folder=self.request.folder,
            engine=options,
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
    documents = islice(read_source(request.texts), 4 * request.documents)
    encoded = (engine.encode(document)[: request.longest] for document in documents)
    sequences = list(islice((ids for ids in encoded if len(ids) >= 2), request.documents))
    if not sequences:
        raise SourceError("no document has two tokens", where="texts", hint="give longer documents")
    prompts = [engine.prompt_ids([{"role": "user", "content": text}]) for text in request.prompts]
    return Subject(sequences, prompts, at=None)


def examine(
    engine: EngineProcess, known: Subject | None, request: CompareRuntimesRequest
) -> tuple[Subject, Quality]:
    """Score the documents and answer the prompts; with the tokens at which the next runtime shall
    be compared."""
    subject = known or find_subject(engine, request)
    scores = score_all(engine, subject.sequences, subject.at, BATCH)
    answers = tuple(engine.generate([ids], request.new_tokens)[0].text for ids in subject.prompts)
    kept = subject.at or [score.ids for score in scores]
    return replace(subject, at=kept), Quality(scores, answers)


def time_turn(engine: EngineProcess, config: Benchmark, seed: int, cold: bool) -> Round:
    """One round of every batch size; a cold engine goes through another one before."""
    if cold:
        for size in config.batch_sizes:
            one_round(engine, config, size, seed=1)
    return {size: one_round(engine, config, size, seed=seed) for size in config.batch_sizes}


def summarize(measured: Measured, first: Measured, config: Benchmark) -> RuntimeFigures:
    """One runtime's figures, and how they compare with the first one's."""
    mine = measured.quality
    theirs = first.quality
    documents = [
        compare(baseline, score) for baseline, score in zip(theirs.scores, mine.scores, strict=True)
    ]
    prefill = [{size: figures[0] for size, figures in turn.items()} for turn in measured.rounds]
    decode = [{size: figures[1] for size, figures in turn.items()} for turn in measured.rounds]
    return RuntimeFigures(
        runtime=measured.runtime,
        versions=measured.versions,
        agreement=total(documents),
        answers=mine.answers,
        prefill_ratio=ratios(measured, first, 0),
        decode_ratio=ratios(measured, first, 1),
        same_answers=sum(
            answer == other for answer, other in zip(mine.answers, theirs.answers, strict=True)
        ),
        speeds=tuple(
            Speed(
                batch_size=size,
                prompt_tokens=config.prompt_tokens,
                new_tokens=config.new_tokens,
                prefill=tuple(speeds[size] for speeds in prefill),
                decode=tuple(speeds[size] for speeds in decode),
            )
            for size in config.batch_sizes
        ),
    )


def total(documents: Sequence[DocumentScore]) -> DocumentScore:
    """The sums of all documents."""
    return DocumentScore(
        tokens=sum(document.tokens for document in documents),
        broken=sum(document.broken for document in documents),
        nll_parent=sum(document.nll_parent for document in documents),
        nll_candidate=sum(document.nll_candidate for document in documents),
        kl=sum(document.kl for document in documents),
        same_top=sum(document.same_top for document in documents),
    )


def ratios(measured: Measured, first: Measured, which: int) -> tuple[Ratio, ...]:
    """Prefill (0) or decode (1) speed over the first runtime's, by batch size; none of the first
    itself."""
    if measured.runtime == first.runtime:
        return ()
    both = list(zip(measured.rounds, first.rounds, strict=True))
    return tuple(
        ratio(size, [mine[size][which] / theirs[size][which] for mine, theirs in both])
        for size in both[0][0]
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
