"""The text that a model is calibrated with and judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from configs.section import Lax, Minutes, Section


class PythonDocs(Section):
    """The language reference that ships with every Python (`pydoc_data.topics`): real text that
    needs no network."""

    type: Literal["python_docs"]


class TextFile(Section):
    """A `.jsonl` file (`{"text": ...}` or `{"messages": [...]}` a line), or a text file whose
    documents are separated by blank lines."""

    type: Literal["file"]
    path: Lax[Path]


class HubDataset(Section):
    """A data set on the Hugging Face hub, with a `text` or a `messages` column."""

    type: Literal["hub"]
    dataset: str
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    max_documents: int = Field(default=2000, ge=2)


class Texts(Section):
    """The user's own text, split by document into calibration and held-out parts that share no
    passage."""

    source: Annotated[PythonDocs | TextFile | HubDataset, Field(discriminator="type")]
    held_out_documents: int = Field(default=48, ge=1, le=100_000)
    seed: int = 0
    timeout_minutes: Minutes = 30
