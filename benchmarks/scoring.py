"""`python -m benchmarks.scoring`: scoring through an engine's process beside plain transformers, in
tokens per second.

The demo's padded fp16 model and its held-out documents, in the same batches, interleaved (A B B A).
Plain is the forward pass and the mean NLL, nothing else; the engine also ranks the vocabulary,
keeps the likeliest tokens, and sends it all through a pipe.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from artifacts.manifest import ModelArtifact
from artifacts.store.local import LocalStore
from configs.engines import EngineTransformers
from configs.paths import PROJECT
from configs.reader import load
from tasks.compare_runtimes import ratio
from tasks.download import DownloadRequest, download
from tasks.engines.documents import batches, held_out_ids
from tasks.engines.process import EngineProcess
from tasks.engines.protocol import EngineSpec
from tasks.pad import PadRequest, pad
from tasks.runner.step import Context
from tasks.texts import TextsRequest, texts

BATCHES, ROUNDS, DOCUMENTS, LONGEST = (2, 8), 9, 8, 256
LIMIT = 0.8


def prepare(folder: Path) -> tuple[ModelArtifact, ModelArtifact]:
    """The demo's model and texts."""
    pipeline, context = load(PROJECT / "configs/demo.yaml"), Context(LocalStore(folder))
    split = texts(TextsRequest(config=pipeline.texts), context).texts
    source = download(DownloadRequest(source=pipeline.source), context).model
    return (
        pad(PadRequest(model=source, multiple=pipeline.source.pad_to_multiple or 1), context).model,
        split,
    )


def plain(model: Any, sequences: Sequence[Sequence[int]]) -> float:
    """The mean NLL of a batch, with nothing around it."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = labels[row, : len(sequence)] = torch.tensor(sequence)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return float(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        )


def tokens_per_second(
    sequences: Sequence[Sequence[int]], size: int, score: Callable[[list[Sequence[int]]], object]
) -> float:
    started = time.perf_counter()
    for batch in batches(range(len(sequences)), size):
        score([sequences[number] for number in batch])
    return sum(len(sequence) - 1 for sequence in sequences) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    with tempfile.TemporaryDirectory(prefix="lmflows-bench-") as folder:
        artifact, split = prepare(Path(folder))
        model: Any = AutoModelForCausalLM.from_pretrained(artifact.path, dtype=torch.float32).eval()
        figures = []
        with EngineProcess(
            EngineSpec(folder=artifact.path, engine=EngineTransformers(name="transformers"))
        ) as engine:
            sequences = held_out_ids(engine, split, (0, DOCUMENTS), LONGEST)
            ways: list[Callable[[list[Sequence[int]]], object]] = [
                engine.score,
                lambda batch: plain(model, batch),
            ]
            for size in BATCHES:
                rounds: list[tuple[float, float]] = []
                for number in range(-1, ROUNDS):  # the first one warms up
                    order = (0, 1) if number % 2 else (1, 0)
                    speed = {way: tokens_per_second(sequences, size, ways[way]) for way in order}
                    if number >= 0:
                        rounds.append((speed[0], speed[1]))
                found = ratio(size, [ours / theirs for ours, theirs in rounds])
                figures.append(
                    {
                        "batch_size": size,
                        "engine": [one for one, _ in rounds],
                        "plain": [other for _, other in rounds],
                        "ratio": found.model_dump(),
                    }
                )
                print(
                    f"batch {size}: {statistics.median(one for one, _ in rounds):6.0f} tokens/s,"
                    f" plain transformers {statistics.median(other for _, other in rounds):6.0f};"
                    f" ratio {found.median:.2f} [{found.low:.2f}, {found.high:.2f}], asked for:"
                    f" {LIMIT}"
                )
    if (place := parser.parse_args().json) is not None:
        place.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
