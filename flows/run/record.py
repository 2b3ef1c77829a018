"""What a finished run leaves in its folder, so that it can be found by name later. Imports nothing
heavy: `lmflows report` reads it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from artifacts.manifest import Digest, canonical_json
from artifacts.store.files import write_atomic

SUMMARY = "summary.json"


class RunSummary(BaseModel):
    """What a finished run says of itself, in its folder."""

    name: str
    flow_run_id: str
    report: Digest
    verdict: str

    def write(self, folder: Path) -> None:
        """Into the run's folder, whole or not at all."""
        write_atomic(folder / SUMMARY, canonical_json(self.model_dump(mode="json")))
