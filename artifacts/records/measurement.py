"""A `measurement` artifact: what was measured of one variant through the engine that serves it.

Two files: the record, and beside it the scores of every token. Data only, as it is stored;
`tasks.measure` measures. All NLL figures are in nats.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifacts.manifest import Digest, ModelArtifact
from artifacts.records.checks import ProbeAnswers
from artifacts.records.items import ItemOutcome
from artifacts.records.load_results import Environment
from artifacts.records.record import Record

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MEASUREMENT = "measurement.json"
SCORES = "scores.npz"
COLUMNS = ("nll", "top", "ids", "logprobs")  # of the scores, by position


class Answer(Record):
    """A greedy answer to one prompt. `ids`: the prompt's token ids through the variant's own chat
    template."""

    prompt: str
    ids: tuple[int, ...]
    text: str
    tokens: int
    seconds: float


class Speed(Record):
    """Tokens per second of one batch size, each round's figure.

    Attributes:
        prefill: prompt tokens, over the time to the first new token of the whole batch.
        decode: new tokens, over the time from prompt to last token; prompts of 16 tokens.
    """

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    prefill: tuple[float, ...]
    decode: tuple[float, ...]

    @property
    def prefill_median(self) -> float:
        return statistics.median(self.prefill)

    @property
    def decode_median(self) -> float:
        return statistics.median(self.decode)


class Measurement(Record):
    """One variant through the engine that serves it; the scores of its tokens lie beside it.

    Attributes:
        load_seconds: from the engine's call to a loaded model, without Python's imports.
        gpu_bytes: device memory taken by loading it, KV cache included; None without a GPU.
        hardware: the GPUs, or the processor.
        items: outcomes of the task items, in their order.
        probes: answers for the generation checks; None if none were asked.
        environment: clocks, temperature, power and load while it was timed; None if it was not.
    """

    variant: str
    engine: str
    runtime: str
    versions: dict[str, str]
    hardware: dict[str, str]
    model: Digest
    texts: Digest
    answers: tuple[Answer, ...]
    load_seconds: float
    gpu_bytes: int | None
    speeds: tuple[Speed, ...]
    items: tuple[ItemOutcome, ...] = ()
    probes: ProbeAnswers | None = None
    environment: Environment | None = None


def read_measurement(artifact: ModelArtifact) -> Measurement:
    """The record of a measurement artifact."""
    return Measurement.model_validate_json((artifact.path / MEASUREMENT).read_bytes())


@dataclass(frozen=True)
class Scores:
    """What a model says of a sequence of n token ids, at each of the n - 1 positions that predict
    the next one.

    Attributes:
        nll: float64[n - 1], the negative log-likelihood in nats of ids 1..n-1; NaN where the model
            gave NaN.
        top: int32[n - 1], the likeliest token.
        ids: int32[n - 1, k], the tokens at which the distribution is kept.
        logprobs: float32[n - 1, k], their log-probabilities.
    """

    nll: npt.NDArray[np.float64]
    top: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]


def scores_to_bytes(sequences: Sequence[Sequence[int]], scores: Sequence[Scores]) -> bytes:
    """Token ids and their scores, sequence by sequence, as the artifact holds them."""
    import numpy as np

    arrays = {name: np.concatenate([getattr(score, name) for score in scores]) for name in COLUMNS}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        lengths=np.array([len(sequence) for sequence in sequences], np.int32),
        tokens=np.concatenate([np.array(sequence, np.int32) for sequence in sequences]),
        **arrays,  # type: ignore[arg-type]
    )
    return buffer.getvalue()


def read_scores(artifact: ModelArtifact) -> tuple[list[list[int]], list[Scores]]:
    """The scored token ids and their scores, sequence by sequence."""
    import numpy as np

    with np.load(artifact.path / SCORES, allow_pickle=False) as arrays:
        lengths = arrays["lengths"]
        tokens = np.split(arrays["tokens"], np.cumsum(lengths)[:-1])
        positions = np.cumsum(lengths - 1)[:-1]
        columns = {name: np.split(arrays[name], positions) for name in COLUMNS}
    scores = [
        Scores(**{name: parts[number] for name, parts in columns.items()})
        for number in range(len(tokens))
    ]
    return [ids.tolist() for ids in tokens], scores
