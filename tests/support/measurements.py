"""Measurements of planted scores, as the step stores them, and their comparison."""

from __future__ import annotations

import json

import numpy as np
import torch

from artifacts.manifest import ModelArtifact
from artifacts.records.measurement import MEASUREMENT, SCORES, Answer, Measurement, scores_to_bytes
from artifacts.records.texts import CALIBRATION, HELD_OUT
from artifacts.store.local import LocalStore
from tasks.engines.scoring import scores
from tasks.evaluate import EvaluateRequest, evaluate
from tasks.runner.step import Context

DIGEST = "0" * 64


def planted_texts(
    store: LocalStore, calibration: str = "said before", held_out: str = "never said"
) -> ModelArtifact:
    with store.staging() as staging:
        staging.write(CALIBRATION, (json.dumps({"text": calibration}) + "\n").encode())
        staging.write(HELD_OUT, (json.dumps({"text": held_out}) + "\n").encode())
        return store.commit(staging, "texts")


def planted(
    store: LocalStore,
    lengths: list[int],
    *,
    nan_in: tuple[int, ...] = (),
    ids: tuple[int, ...] = (1, 2),
    text: str = "fine",
) -> ModelArtifact:
    """A measurement of documents of these lengths, as the step stores it; those of `nan_in` have a
    position without a score."""
    sequences = [list(range(length)) for length in lengths]
    found = [
        scores(torch.zeros(length - 1, 64), sequence)
        for length, sequence in zip(lengths, sequences, strict=True)
    ]
    for number in nan_in:
        found[number].nll[0] = np.nan
    record = Measurement(
        variant="w4a16",
        engine="transformers",
        runtime="default",
        versions={},
        hardware={},
        model=DIGEST,
        texts=DIGEST,
        answers=(Answer(prompt="hello", ids=ids, text=text, tokens=1, seconds=1),),
        load_seconds=1,
        gpu_bytes=None,
        speeds=(),
    )
    with store.staging() as staging:
        staging.write(MEASUREMENT, record.model_dump_json().encode())
        staging.write(SCORES, scores_to_bytes(sequences, found))
        return store.commit(staging, "measurement")


def compared(
    store: LocalStore,
    parents: list[ModelArtifact],
    candidates: list[ModelArtifact],
    split: ModelArtifact | None = None,
) -> ModelArtifact:
    request = EvaluateRequest(
        parents=tuple(parents), candidates=tuple(candidates), texts=split or planted_texts(store)
    )
    return evaluate(request, Context(store)).evidence
