"""Prompts of a given length that no cache of prefixes has seen: seeded random words, of which each
request has its own.

Text, not token ids: LMDeploy's /v1/completions takes a list as several prompts. How many words make
a token is asked of the server, which counts the tokens of a few prompts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# for servers that do not count: English words under today's tokenizers
TYPICAL_TOKENS_PER_WORD = 1.4


@dataclass(frozen=True)
class WordCount:
    """Tokens of a prompt of n words: `per_word` * n + `fixed`, of which the latter are a chat
    template's, for example."""

    per_word: float = TYPICAL_TOKENS_PER_WORD
    fixed: float = 0.0

    def words(self, tokens: int) -> int:
        """Words for a prompt of that many tokens, at least one."""
        return max(1, round((tokens - self.fixed) / self.per_word))


@functools.cache
def vocabulary() -> Sequence[str]:
    """Some thousands of words: those of Python's own reference."""
    from pydoc_data.topics import topics

    return sorted(set(re.findall(r"\b[a-z]{2,12}\b", " ".join(topics.values()))))


def prompt(words: int, *, seed: int, number: int) -> str:
    """The text of a request: `words` random words. The same seed and number give the same text,
    another number another one."""
    known = vocabulary()
    indices = np.random.default_rng([seed, 2, number]).integers(0, len(known), words)
    return " ".join(known[index] for index in indices)


def fit(counts: Sequence[tuple[int, int]]) -> WordCount:
    """The line through (words, tokens) of prompts of different lengths; the typical one if there is
    nothing to go by."""
    words = [count for count, _ in counts]
    tokens = [count for _, count in counts]
    if len(set(words)) < 2:
        return WordCount()
    slope, intercept = np.polyfit(words, tokens, 1)
    return WordCount(float(slope), float(intercept)) if slope > 0.1 else WordCount()
