"""What a step is: a typed function with a declaration of what decides its result and how it may be
repeated.

This module and the step modules know nothing of Prefect, so that a child process (which may run in
another locked environment than the flow) needs none of it; `flows.run.task` makes the Prefect task.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict

from artifacts.manifest import ModelArtifact, canonical_json
from artifacts.records.trusted_code import may_run_code
from artifacts.store.local import LocalStore

DEFAULT_MINUTES = 30.0
LIMIT = "timeout_minutes"  # the name of a time limit, in a config's section and in a request


class Request(BaseModel):
    """Base of what a step is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def cacheable(self) -> bool:
        """Whether the request says everything that decides the result."""
        return True

    @property
    def limit_minutes(self) -> float:
        """How long the step may take before it is killed."""
        return DEFAULT_MINUTES

    @property
    def frees_gpu_memory(self) -> bool:
        """Whether the step first ends what holds the GPU memory that it needs."""
        return False

    def key_fields(self) -> dict[str, Any]:
        """The fields that decide the result. Time limits never do, in a section or beside it."""
        fields: dict[str, Any] = _without_limits(self.model_dump(mode="json"))
        return {name: _without_limits(value) for name, value in fields.items()}


class Result(BaseModel):
    """Base of what a step answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def artifacts(self) -> list[ModelArtifact]:
        """The artifacts that the answer hands on."""
        return [value for _, value in self if isinstance(value, ModelArtifact)]


In = TypeVar("In", bound=Request)
Out = TypeVar("Out", bound=Result)


@dataclass
class Context:
    """What a step may use beside its request: the workspace's store, its progress, its scratch
    log."""

    store: LocalStore
    events: Path | None = None
    started: float = field(default_factory=time.monotonic)

    def progress(self, fraction: float, text: str) -> None:
        """Tell how far the step is: a fraction in [0, 1] and a few words."""
        if self.events is not None:
            line = json.dumps(
                {
                    "at": round(time.monotonic() - self.started, 3),
                    "fraction": round(min(max(fraction, 0.0), 1.0), 4),
                    "text": text,
                }
            )
            with self.events.open("a") as file:
                file.write(line + "\n")

    def scratch(self, name: str) -> Path | None:
        """A file in the run's folder of this step, for logs; None if the step runs in the flow's
        own process."""
        return None if self.events is None else self.events.with_name(name)

    def log(self, text: str) -> None:
        print(text, flush=True)

    def trusts(self, model: ModelArtifact) -> bool:
        """Whether the Python files of an artifact in the workspace may run."""
        return may_run_code(self.store.manifest(model.digest))


@dataclass(frozen=True)
class Step(Generic[In, Out]):
    """A declared step. Calling it runs the plain function in this process.

    Attributes:
        gpu: it computes on the run's GPUs: it waits for their slots and for free memory. The child
            of a step without this sees no GPU.
        child: it runs in a process of its own.
        cached: an equal key gives the earlier answer.
        retries: how often an error with `retryable` is tried again.
        revision: part of the cache key.
        libraries: the distributions whose versions are part of the cache key.
        summary: the first line of the function's docstring.
    """

    name: str
    function: Callable[[In, Context], Out]
    request: type[In]
    result: type[Out]
    gpu: bool
    child: bool
    cached: bool
    retries: int
    revision: int
    libraries: tuple[str, ...]
    summary: str

    @property
    def address(self) -> str:
        """`module:name`, by which a child process finds the step."""
        return f"{self.function.__module__}:{self.name}"

    def __call__(self, request: In, context: Context) -> Out:
        return self.function(request, context)

    def cache_key(self, request: In) -> str:
        """Hex sha256 of what decides the result: input digests, the step's config, the versions
        that do the work."""
        return hashlib.sha256(
            canonical_json(
                {
                    "step": self.name,
                    "revision": self.revision,
                    "versions": versions(self.libraries),
                    "request": _without_places(request.key_fields()),
                }
            )
        ).hexdigest()


def step(
    *,
    gpu: bool = False,
    child: bool = True,
    cached: bool = True,
    retries: int = 0,
    revision: int = 1,
    libraries: tuple[str, ...] = (),
) -> Callable[[Callable[[In, Context], Out]], Step[In, Out]]:
    """Declare a step: all that it is stands here.

    Args:
        gpu: it computes on a GPU, so it waits for the run's GPU slots and for free memory on them.
            Leave it out, and the step's child sees no GPU at all.
        child: run it in a process of its own (everything that loads weights or a native library).
        cached: an equal key gives the earlier answer, after the store has verified its artifacts.
        retries: how often an error with `retryable` is tried again.
        revision: raise it when the code changes what the result is.
        libraries: the distributions that do the work; their versions are part of the cache key.
    """

    def declare(function: Callable[[In, Context], Out]) -> Step[In, Out]:
        hints = get_type_hints(function)
        summary = (function.__doc__ or "").strip().split("\n\n")[0]
        return Step(
            name=function.__name__,
            function=function,
            request=hints["request"],
            result=hints["return"],
            gpu=gpu,
            child=child,
            cached=cached,
            retries=retries,
            revision=revision,
            libraries=libraries,
            summary=" ".join(summary.split()),
        )

    return declare


def versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """The installed version of each distribution, and Python's."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    return {"python": python} | {name: importlib.metadata.version(name) for name in libraries}


def _without_limits(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: item for name, item in value.items() if name != LIMIT}


def _without_places(value: Any) -> Any:
    """Drop the folder of every artifact: its digest says what it is, wherever it lies."""
    if isinstance(value, dict):
        artifact = value.keys() == ModelArtifact.model_fields.keys()
        return {
            key: _without_places(item)
            for key, item in value.items()
            if not (artifact and key == "path")
        }
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return value
