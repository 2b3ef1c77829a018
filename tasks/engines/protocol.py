"""What an engine can do. An engine runs one variant of a model; a step talks to it only through
this protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from artifacts.records.measurement import Scores
from configs.engines import Engine as EngineOptions
from configs.variants import KvBits
from tasks.checkpoints.calibration import token_ids


class EngineSpec(BaseModel):
    """What an engine is asked to load: a model folder, the engine and its options, and the bits of
    the KV cache.

    Attributes:
        trust_remote_code: run the folder's Python files; the caller has checked their hashes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    engine: EngineOptions
    kv_bits: KvBits = 0
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Generation:
    """One greedy answer.

    Attributes:
        text: decoded without special tokens.
        tokens: how many were generated, the end token included.
        finish_reason: `stop` if the model ended its turn, `length` if the limit did.
        finite: whether every logit on the way was finite; None if the engine does not show its
            logits.
        seconds: from prompt to last token; where an engine answers a batch at once, the batch's.
    """

    text: str
    tokens: int
    finish_reason: str
    finite: bool | None
    seconds: float


def _day(form: str) -> str:
    """Some templates write the date into the prompt; what is measured on different days must have
    the same."""
    return datetime(2025, 1, 1, tzinfo=UTC).strftime(form)


class Tokenized:
    """Token ids by the model's own tokenizer: the part that every engine in this process has in
    common."""

    tokenizer: Any

    def prompt_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        return list(
            self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=True,
                tokenize=True,
                tools=[dict(tool) for tool in tools] if tools else None,
                strftime_now=_day,
            )
        )

    def encode(self, record: Mapping[str, Any]) -> list[int]:
        return token_ids(self.tokenizer, dict(record))


class Engine(Protocol):
    """A loaded model."""

    @property
    def load_seconds(self) -> float: ...

    @property
    def vocabulary(self) -> int: ...

    def prompt_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Token ids of a chat through the model's own template, up to where the assistant speaks.

        Args:
            tools: functions in OpenAI's form that the template may offer to the model; many
                templates know of none and leave them out.
        """
        ...

    def encode(self, record: Mapping[str, Any]) -> list[int]:
        """Token ids of a text record (`{"text": ...}` or `{"messages": [...]}`)."""
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, exact: bool = False
    ) -> list[Generation]:
        """Greedy answers to prompts given as token ids. `exact`: no token ends an answer, for
        measuring speed."""
        ...

    def score(
        self, sequences: Sequence[Sequence[int]], at: Sequence[npt.NDArray[np.int32]] | None = None
    ) -> list[Scores]:
        """Score sequences of n >= 2 token ids, as one batch.

        Args:
            at: per sequence int32[n - 1, k], the tokens whose log-probabilities are wanted; None:
                each position's likeliest.
        """
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...
