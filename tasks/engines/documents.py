"""Documents through an engine: their token ids, and their scores batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from artifacts.manifest import ModelArtifact
from artifacts.records.measurement import Scores
from artifacts.records.texts import HELD_OUT, read_documents
from configs.errors import SourceError
from tasks.engines.protocol import Engine


def held_out_ids(
    engine: Engine, texts: ModelArtifact, part: tuple[int, int], longest: int
) -> list[list[int]]:
    """Token ids of these held-out documents, each cut to its first `longest` tokens, longest first.

    Args:
        part: the first held-out document, and the one after the last.

    Raises:
        SourceError: none of them has two tokens.
    """
    documents = read_documents(texts.path / HELD_OUT)[slice(*part)]
    encoded = [engine.encode(document)[:longest] for document in documents]
    sequences = [ids for ids in encoded if len(ids) >= 2]
    if not sequences:
        raise SourceError(
            f"of the held-out documents {part[0] + 1} to {part[1]} none has two tokens",
            where="texts.source",
            hint="give longer documents",
        )
    return sorted(sequences, key=len, reverse=True)  # batches of equal lengths waste no padding


def score_all(
    engine: Engine,
    sequences: Sequence[Sequence[int]],
    at: Sequence[npt.NDArray[np.int32]] | None,
    batch_size: int,
    done: Callable[[int], None] = lambda _: None,
) -> list[Scores]:
    """Score sequences of token ids in batches; `at` as in `Engine.score`. `done` hears after each
    batch how many are scored."""
    scores: list[Scores] = []
    for batch in batches(range(len(sequences)), batch_size):
        kept = None if at is None else [at[number] for number in batch]
        scores += engine.score([sequences[number] for number in batch], kept)
        done(len(scores))
    return scores


def batches(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """The items in runs of `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
