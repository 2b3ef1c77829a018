"""What is known of a model before anything is measured: what it is, and what it said in the smoke
test."""

from __future__ import annotations

from artifacts.records.record import Record


class ModelSummary(Record):
    """What a model is; sizes in bytes on disk, the candidate's as its recipe predicts it."""

    architecture: str
    parameters: int
    parent_bytes: int
    candidate_bytes: int
    hidden_size: int
    head_dim: int
    vocabulary: int


class Turn(Record):
    """One question and its answer; tokens are counted with the end token."""

    prompt: str
    answer: str
    tokens: int
    seconds: float


class SmokeTestRecord(Record):
    """The answers, and what loading and speaking took; memory in bytes, of the largest process."""

    turns: tuple[Turn, ...]
    load_seconds: float
    tokens_per_second: float
    peak_rss_bytes: int
    dtype: str
