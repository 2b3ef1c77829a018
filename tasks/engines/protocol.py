"""What an engine is: a module that offers `EngineModule`, and a loaded model that can do what
`Engine` says.

An engine runs one variant of a model; a step talks to it only through these protocols.
"""

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
from configs import engines
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
    engine: engines.Engine
    kv_bits: KvBits = 0
    trust_remote_code: bool = False


@dataclass(frozen=True)
class ServerSpec:
    """What a server is started with.

    Attributes:
        record: the endpoint's record, for a server that reads it itself.
        model_name: the model's name in the API.
    """

    record: Path
    model: EngineSpec
    model_name: str
    host: str
    port: int
    api_keys: tuple[str, ...]


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


class EngineModule(Protocol):
    """What the module of an engine offers; `tasks.engines` has the table of them.

    Attributes:
        LIBRARIES: whose versions belong to a measurement with it.
    """

    @property
    def LIBRARIES(self) -> tuple[str, ...]: ...

    def unavailable(self) -> str | None:
        """Why it cannot be loaded in this process, in words that follow its name; or None."""
        ...

    def refuses_architecture(self, architecture: str) -> str | None:
        """Why it does not serve an architecture, with the fix; or None."""
        ...

    def refuses_kv(self, kv_bits: KvBits, head_dim: int) -> str | None:
        """Why it must not be asked to keep a model's KV cache in these bits, with the fix; or
        None."""
        ...

    def refuses_deployment(self, runtime: str, versions: Mapping[str, str]) -> str | None:
        """Why its server cannot be proven to serve what was judged, with the fix; or None.

        Args:
            versions: of the libraries in the runtime.
        """
        ...

    def load(self, spec: EngineSpec) -> Engine:
        """Load a model in this process.

        Raises:
            EngineError: the engine is not available, or refuses the model.
        """
        ...

    def prepare_server(self, folder: Path, tp: int) -> None:
        """Make this process ready to become the server of a model folder.

        Raises:
            EngineError: the engine is not available.
        """
        ...

    def server_command(self, server: ServerSpec) -> list[str]:
        """The words that start the server."""
        ...

    def become_server(self, command: Sequence[str]) -> None:
        """Serve in this process, or in the program that takes its place."""
        ...
