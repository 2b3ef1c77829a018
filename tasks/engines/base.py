"""What an engine can do. An engine runs one variant of a model; a step talks to it only through this protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Generation:
    """One greedy answer.

    Attributes:
        text: decoded without special tokens.
        tokens: how many were generated, the end token included.
        finish_reason: `stop` if the model ended its turn, `length` if the limit did.
        finite: whether every logit on the way was finite.
        seconds: from prompt to last token.
    """

    text: str
    tokens: int
    finish_reason: str
    finite: bool
    seconds: float


class Engine(Protocol):
    """A loaded model."""

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Generation]:
        """Greedy answers to prompts given as token ids."""
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float64]]:
        """Per sequence of n >= 2 token ids: float64[n - 1], the negative log-likelihood in nats of ids 1..n-1."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...
