"""The measure step: one variant through the engine that would serve it, its quality and its speed.

It scores the held-out documents, answers the prompts and, if asked, is timed. Hands on a
measurement artifact; what it says beside its parent is `tasks.evaluate`'s business.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from artifacts.manifest import ModelArtifact, Parent, canonical_json
from artifacts.records.checks import ProbeAnswer, ProbeAnswers
from artifacts.records.items import ItemOutcome
from artifacts.records.load_results import Environment
from artifacts.records.measurement import (
    MEASUREMENT,
    SCORES,
    Answer,
    Measurement,
    Speed,
    read_scores,
    scores_to_bytes,
)
from artifacts.records.record import Record
from artifacts.store.files import sha256_file
from configs.callbacks import Progress, part_of
from configs.engines import Engine
from configs.errors import SourceError
from configs.evaluation import Benchmark, Evaluate
from configs.variants import Variant, weights_and_kv
from tasks.engines.documents import held_out_ids, score_all
from tasks.engines.process import EngineProcess
from tasks.engines.protocol import EngineSpec
from tasks.engines.speed import speeds
from tasks.load.environment import Watch
from tasks.machine import gpus
from tasks.quality.item_answers import run_items
from tasks.quality.items import Item, read_items
from tasks.quality.probes import PROBE_PROMPTS, ask_probes, probe_answer
from tasks.runner import runtimes
from tasks.runner.step import Context, Request, Result, step

THIS_MACHINE = "http://127.0.0.1"  # where the engine's process runs


class ItemsFile(Record):
    """Task items: the file, and the SHA-256 of what it held when the run began."""

    path: Path
    sha256: str


class MeasureRequest(Request):
    """What to measure.

    Attributes:
        part: the first held-out document that is scored, and the one after the last. A part that
            does not begin with the first one has more documents to score and nothing else: the
            answers and the speed are known.
        baseline: the fp16 variant's measurement of this part, whose token ids are scored again;
            None for the fp16 variant itself.
        hardware: what the step will run on: figures of other hardware are other figures.
    """

    variant: Variant
    model: ModelArtifact
    texts: ModelArtifact
    engine: Engine
    config: Evaluate
    benchmark: Benchmark | None
    part: tuple[int, int]
    items: tuple[ItemsFile, ...] = ()
    baseline: ModelArtifact | None
    hardware: dict[str, str]

    def key_fields(self) -> dict[str, object]:
        """What decides is the verdict's business: changing it must not measure again. Another GPU,
        driver or engine must."""
        verdicts = {
            "documents",
            "max_documents",
            "max_perplexity_ratio",
            "confidence",
            "max_parent_perplexity",
            "tasks",
            "timeout_minutes",
        }
        return super().key_fields() | {
            "config": self.config.model_dump(mode="json", exclude=verdicts),
            "items": [file.sha256 for file in self.items],
            "runtime": runtimes.fingerprint(self.engine.runtime),
        }

    @property
    def limit_minutes(self) -> float:
        return self.config.timeout_minutes


class MeasureResult(Result):
    measurement: ModelArtifact


@step(gpu=True)
def measure(request: MeasureRequest, context: Context) -> MeasureResult:
    """Score, question and time one variant through its engine."""
    spec = EngineSpec(
        folder=request.model.path,
        engine=request.engine,
        kv_bits=weights_and_kv(request.variant)[1],
        trust_remote_code=context.trusts(request.model),
    )
    context.progress(0.02, f"loading {request.engine.name}")
    before = gpus.used_bytes()
    with EngineProcess(spec, log=context.scratch("engine.log")) as engine:
        after = gpus.used_bytes()
        sequences, kept = _subject(request, engine)
        scores = score_all(
            engine,
            sequences,
            kept,
            request.config.batch_size,
            lambda done: context.progress(
                0.15 + 0.5 * done / len(sequences), f"scored {done}/{len(sequences)} documents"
            ),
        )
        first_part = request.part[0] == 0
        replies = ask(engine, request, context.progress) if first_part else Replies()
    record = Measurement(
        variant=request.variant,
        engine=request.engine.name,
        runtime=request.engine.runtime,
        versions=engine.versions,
        hardware=request.hardware,
        model=request.model.digest,
        texts=request.texts.digest,
        answers=replies.answers,
        items=replies.items,
        probes=replies.probes,
        load_seconds=round(engine.load_seconds, 2),
        gpu_bytes=after - before if gpus.visible() else None,
        speeds=replies.speeds,
        environment=replies.environment,
    )
    with context.store.staging() as staging:
        staging.write(MEASUREMENT, canonical_json(record.model_dump(mode="json")))
        staging.write(SCORES, scores_to_bytes(sequences, scores))
        artifact = context.store.commit(
            staging,
            "measurement",
            parents=[
                Parent(role="model", digest=request.model.digest),
                Parent(role="texts", digest=request.texts.digest),
            ],
        )
    return MeasureResult(measurement=artifact)


@dataclass(frozen=True)
class Replies:
    """What an engine has answered beside scoring the documents, and how fast it is."""

    answers: tuple[Answer, ...] = ()
    probes: ProbeAnswers | None = None
    items: tuple[ItemOutcome, ...] = ()
    speeds: tuple[Speed, ...] = ()
    environment: Environment | None = None


def ask(engine: EngineProcess, request: MeasureRequest, progress: Progress) -> Replies:
    """Answer the prompts one by one, the probes and the task items in batches, and be timed if that
    is asked for."""
    config = request.config
    answers: list[Answer] = []
    asked: list[ProbeAnswer] = []
    for number, prompt in enumerate(config.prompts):
        progress(0.65 + 0.05 * number / len(config.prompts), f"asking {prompt!r}")
        ids = engine.prompt_ids([{"role": "user", "content": prompt}])
        answer = engine.generate([ids], config.max_new_tokens)[0]
        answers.append(
            Answer(
                prompt=prompt,
                ids=tuple(ids),
                text=answer.text,
                tokens=answer.tokens,
                seconds=round(answer.seconds, 4),
            )
        )
        asked.append(probe_answer(prompt, answer))
    probes = None
    if config.probes:
        probes = ask_probes(
            engine,
            prompts=PROBE_PROMPTS[: config.probes],
            new_tokens=config.probe_tokens,
            asked=asked,
            progress=part_of(progress, 0.7, 0.05),
        )
    items = run_items(
        engine,
        items_of(request.items),
        batch_size=config.batch_size,
        progress=part_of(progress, 0.75, 0.1),
    )
    if request.benchmark is None:
        return Replies(tuple(answers), probes, items)
    with Watch(THIS_MACHINE, engine.versions) as watch:
        timed = speeds(engine, request.benchmark, part_of(progress, 0.85, 0.13))
    return Replies(tuple(answers), probes, items, timed, watch.environment())


def items_files(paths: Sequence[Path]) -> tuple[ItemsFile, ...]:
    """The files of task items, each read once, so that a mistake in one shows before any long work.

    Raises:
        SourceError: a line that is no item.
    """
    files = tuple(ItemsFile(path=path, sha256=sha256_file(path)[1]) for path in paths)
    items_of(files)
    return files


def items_of(files: Sequence[ItemsFile]) -> tuple[Item, ...]:
    """The items of the files, in their order.

    Raises:
        SourceError: a file has changed since the run began, or two of them have the same item.
    """
    items: list[Item] = []
    for file in files:
        items += read_items(file.path)
        if sha256_file(file.path)[1] != file.sha256:
            raise SourceError(
                "has changed since the run began", where=str(file.path), hint="run again"
            )
    seen = Counter((item.task, item.id) for item in items)
    twice = [f"{task} {name}" for (task, name), count in seen.items() if count > 1]
    if twice:
        raise SourceError(
            f"two files have the same items: {', '.join(twice[:3])}",
            where="evaluate.tasks",
            hint="give each task to one file",
        )
    return tuple(items)


def hardware(chosen: Sequence[gpus.Gpu]) -> dict[str, str]:
    """What figures are measured on: these GPUs, or the processor."""
    if chosen:
        return gpus.description(chosen[0]) | {"gpus": str(len(chosen))}
    return {"processor": platform.processor() or platform.machine(), "cores": str(os.cpu_count())}


def _subject(
    request: MeasureRequest, engine: EngineProcess
) -> tuple[list[list[int]], list[npt.NDArray[np.int32]] | None]:
    """What is scored, and at which tokens the distributions are kept: the baseline's, or the
    model's own likeliest."""
    if request.baseline is None:
        return (
            held_out_ids(
                engine, request.texts, request.part, request.config.max_tokens_per_document
            ),
            None,
        )
    sequences, scores = read_scores(request.baseline)
    return sequences, [score.ids for score in scores]
