"""A workspace with the small model and its texts that quantizes as the flow does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from artifacts.manifest import ModelArtifact
from artifacts.records.texts import HELD_OUT, read_documents
from artifacts.store.local import LocalStore
from configs.quantization import Quantize
from configs.sources import LocalSource
from configs.texts import PythonDocs, Texts
from tasks.checkpoints.calibration import token_ids
from tasks.download import DownloadRequest, download
from tasks.engines.reference import ReferenceEngine
from tasks.quantize import QuantizeRequest, QuantizeResult, quantize
from tasks.runner.parent import Placement, run_child
from tasks.runner.step import Context
from tasks.texts import TextsRequest, texts
from tests.support.heard import Heard
from tests.support.patience import PATIENCE

RECIPE: dict[str, Any] = {"group_size": 128, "samples": 4, "sequence_length": 64, "batch_size": 4}


class Bench:
    """A workspace with the small model and its texts; quantizes in child processes, as the flow
    does."""

    def __init__(self, folder: Path, tiny_model: Path) -> None:
        self.folder, self.store = folder, LocalStore(folder / "store")
        self.model = download(
            DownloadRequest(source=LocalSource(type="local", path=tiny_model)), Context(self.store)
        ).model
        self.texts = texts(
            TextsRequest(config=Texts(source=PythonDocs(type="python_docs"))), Context(self.store)
        ).texts
        self.heard = Heard()

    def quantize(self, **recipe: Any) -> QuantizeResult:
        request = QuantizeRequest(
            model=self.model, texts=self.texts, config=Quantize.model_validate(RECIPE | recipe)
        )
        return run_child(
            quantize,
            request,
            Placement(self.folder / "step", self.store, timeout_s=PATIENCE),
            progress=self.heard.progress,
            log=self.heard.log,
        )[0]

    def nll(self, artifact: ModelArtifact) -> float:
        engine = ReferenceEngine(artifact.path)
        rows = [
            ids
            for r in read_documents(self.texts.path / HELD_OUT)
            if len(ids := token_ids(engine.tokenizer, r)[:128]) > 1
        ]
        return float(np.concatenate([scores.nll for scores in engine.score(rows)]).mean())
