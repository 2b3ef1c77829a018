"""Generation checks: what a model answered to the probes, and what that says of a candidate beside
its parent.

Data only; `tasks.quality.probes` asks, `tasks.quality.generation_checks` judges.
"""

from __future__ import annotations

from pydantic import Field

from artifacts.records.record import Record


class ProbeAnswer(Record):
    """A greedy answer to a probe.

    Attributes:
        tokens: how many were generated, the end token included.
        ended: the model ended its turn; False: the limit did.
    """

    prompt: str
    text: str
    tokens: int
    ended: bool


class Rendering(Record):
    """A conversation through a model's chat template: the token ids, or in the template's words why
    it refuses. One of both."""

    shape: str
    ids: tuple[int, ...] = ()
    refused: str = ""


class ProbeAnswers(Record):
    """What one model answered.

    Attributes:
        new_tokens: the limit of the answers.
        free: answers to questions in plain words.
        renderings: conversations of several shapes.
        tools: answers to questions that call for a function; empty if the chat template does not
            offer functions to the model.
        json_objects: answers to requests for a JSON object.
    """

    new_tokens: int
    free: tuple[ProbeAnswer, ...]
    renderings: tuple[Rendering, ...]
    tools: tuple[ProbeAnswer, ...]
    json_objects: tuple[ProbeAnswer, ...]


class Example(Record):
    """One probe that the candidate fails and its parent does not. Long texts are cut."""

    prompt: str
    parent: str
    candidate: str


class CheckResult(Record):
    """One check of a candidate beside its parent.

    Attributes:
        n: probes that could be judged.
        new_failures: those that the candidate fails and its parent does not.
        passed: None where the check is not applicable, since the parent cannot do it either.
        why: the decision in plain words.
    """

    name: str
    n: int = Field(ge=0)
    parent_failures: int = Field(ge=0)
    candidate_failures: int = Field(ge=0)
    new_failures: int = Field(ge=0)
    passed: bool | None
    why: str
    examples: tuple[Example, ...] = ()
