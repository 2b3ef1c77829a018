"""What a model is asked: two chat turns, held-out text and tasks for the verdict, and its speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from configs.section import Lax, Minutes, Section


class SmokeTest(Section):
    """Two chat turns through the model's own template: does the fp16 model speak at all?"""

    prompts: Lax[tuple[str, ...]] = Field(
        default=("hello", "please provide three suggestions about ielts' preparation"), min_length=1
    )
    max_new_tokens: int = Field(default=64, ge=1, le=4096)
    timeout_minutes: Minutes = 60


class Evaluate(Section):
    """How parent and candidate are compared, and the margin that decides."""

    documents: int = Field(
        default=24, ge=1, description="held-out documents to score at first; a verdict needs 24"
    )
    max_documents: int = Field(
        default=48,
        ge=1,
        description="while the verdict is open, twice as many are scored, up to this",
    )
    max_tokens_per_document: int = Field(default=1024, ge=16)
    batch_size: int = Field(default=4, ge=1)
    max_perplexity_ratio: float = Field(
        gt=1.0,
        le=10.0,
        description=(
            "the margin, candidate over parent: PASS needs the whole 95 % interval below it"
        ),
    )
    confidence: float = Field(
        default=0.95,
        ge=0.5,
        lt=1.0,
        description=(
            "of the two-sided interval, over all looks and all attempts of the repair together"
        ),
    )
    max_parent_perplexity: float = Field(
        default=500.0, gt=1.0, description="above it the baseline itself is taken to be broken"
    )
    prompts: Lax[tuple[str, ...]] = (
        "hello",
        "please provide three suggestions about ielts' preparation",
        "What is a list in Python?",
    )
    max_new_tokens: int = Field(default=48, ge=1, le=4096)
    tasks: Lax[tuple[Lax[Path], ...]] = Field(
        default=(),
        description=(
            "JSONL files of multiple-choice and exact-match items; a task that is significantly"
            " worse is a FAIL (docs/verdict.md)"
        ),
    )
    probes: int = Field(
        default=4,
        ge=0,
        le=7,
        description=(
            "free questions in several scripts, asked beside the prompts; with them JSON and, if"
            " the template has it, a function call. 0 asks none"
        ),
    )
    probe_tokens: int = Field(
        default=64,
        ge=16,
        le=4096,
        description="the longest answer to a probe; below 48 few endless loops show",
    )
    timeout_minutes: Minutes = 240

    @property
    def looks(self) -> tuple[int, ...]:
        """How many documents are scored by the first look, the second, ...: twice as many each
        time, up to the budget."""
        sizes = [self.documents]
        while sizes[-1] < self.max_documents:
            sizes.append(min(2 * sizes[-1], self.max_documents))
        return tuple(sizes)


class Benchmark(Section):
    """How fast each variant is, measured at the engine: prefill and decode, without a server in
    between."""

    batch_sizes: Lax[tuple[Annotated[int, Field(ge=1, le=4096)], ...]] = Field(
        default=(1, 16, 128), min_length=1
    )
    prompt_tokens: int = Field(default=512, ge=1)
    new_tokens: int = Field(default=128, ge=2)
    rounds: int = Field(default=3, ge=1, description="the median counts")
