"""The smoke test: does the fp16 model speak? Two chat turns with history through its own template.

Hands on the answers and what loading and speaking took. Knows nothing of quality: that is
`tasks.evaluate`.
"""

from __future__ import annotations

import resource
from collections import Counter
from typing import TYPE_CHECKING, Any

from artifacts.manifest import ModelArtifact
from artifacts.records.model import SmokeTestRecord, Turn
from configs.errors import SmokeTestFailed
from configs.evaluation import SmokeTest
from tasks.machine.gpus import cuda_is_visible
from tasks.runner.step import Context, Request, Result, step

if TYPE_CHECKING:
    from tasks.engines.protocol import Generation

REPEATS = 8  # an n-gram this many times in a row is a loop, not a style


class SmokeTestRequest(Request):
    model: ModelArtifact
    config: SmokeTest

    def key_fields(self) -> dict[str, Any]:
        return super().key_fields() | {"cuda": cuda_is_visible()}

    @property
    def limit_minutes(self) -> float:
        return self.config.timeout_minutes


class SmokeTestResult(SmokeTestRecord, Result):
    """What the model said."""


@step(gpu=True, libraries=("transformers", "torch"))
def smoke_test(request: SmokeTestRequest, context: Context) -> SmokeTestResult:
    """Load the fp16 model with transformers and have a short chat with it."""
    import torch

    from tasks.engines.reference import ReferenceEngine

    context.progress(0.05, "loading")
    engine = ReferenceEngine(
        request.model.path, dtype=torch.float16, trust_remote_code=context.trusts(request.model)
    )
    messages: list[dict[str, str]] = []
    turns = []
    for number, prompt in enumerate(request.config.prompts):
        context.progress((number + 1) / (len(request.config.prompts) + 1), f"asking {prompt!r}")
        messages.append({"role": "user", "content": prompt})
        answer = engine.generate([engine.prompt_ids(messages)], request.config.max_new_tokens)[0]
        context.log(f"> {prompt}\n{answer.text}")
        if problem := unwell(answer):
            raise SmokeTestFailed(
                f"{problem}; it said {answer.text[:80]!r}",
                where=f"turn {number + 1}, prompt {prompt!r}",
                hint=(
                    "check the weights, the chat template and the dtype (a model trained in"
                    " bfloat16 can overflow in float16)"
                ),
            )
        messages.append({"role": "assistant", "content": answer.text})
        turns.append(
            Turn(
                prompt=prompt,
                answer=answer.text,
                tokens=answer.tokens,
                seconds=round(answer.seconds, 3),
            )
        )
    return SmokeTestResult(
        turns=tuple(turns),
        load_seconds=round(engine.load_seconds, 2),
        dtype="float16",
        tokens_per_second=round(sum(t.tokens for t in turns) / sum(t.seconds for t in turns), 2),
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def unwell(answer: Generation) -> str | None:
    """What is wrong with an answer, or None: NaN logits, emptiness, unprintable text, endless
    repetition."""
    if not answer.finite:
        return "logits are NaN or infinite"
    if not answer.text:
        return "the answer is empty"
    printable = sum(
        character.isprintable() or character in "\n\t"
        for character in answer.text.replace("\ufffd", "\0")
    )
    if printable < 0.9 * len(answer.text):
        return "the answer is not text"
    if answer.finish_reason == "length" and (loop := endless_repetition(answer.text)):
        return f"the answer repeats {loop!r} without end"
    return None


def endless_repetition(text: str) -> str | None:
    """The phrase that a text ends in REPEATS times or more in a row, or that is nine tenths of its
    words; else None."""
    words = text.split() if " " in text.strip() else list(text)
    for length in range(1, len(words) // REPEATS + 1):
        phrase = words[-length:]
        if words[-length * REPEATS :] == phrase * REPEATS:
            return " ".join(phrase)
    if len(words) >= 2 * REPEATS:
        word, count = Counter(words).most_common(1)[0]
        if count >= 0.9 * len(words):
            return word
    return None
