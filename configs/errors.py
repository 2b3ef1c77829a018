"""The errors of the project: what happened, where, and what to do about it. All of them:

    LmflowsError
      ConfigError               what the user asked cannot be: a config, a value, a name
      SourceError               the model or the text that was named cannot be used
      PreflightError            a known trap, found before any long work
      TransferError             a download or upload broke off
      ArtifactDamaged           files are not what their manifest says
      ArtifactMissing           no such digest in the store
      UnsafeManifest            a manifest that leaves its folder or contradicts itself
      DiskFull                  no space left
      StoreBusy                 somebody else works on the store
      ConditionalWritesIgnored  a store without compare-and-swap
      PromotionRefused          a stage may not move like that
      SignatureRefused          a signature is missing or does not hold
      StaleRef                  somebody else moved the stage meanwhile
      StepFailed                a step's unforeseen exception
      StepCrashed               a step's process died without an answer
      StepTimeout               a step ran longer than its limit
      SmokeTestFailed           the model does not speak
      VerdictFailed             the candidate is not good enough
      GpuBusy                   somebody else holds the GPU memory that a step needs
      EngineError               an engine is missing, or refuses the model or a request
        EngineCrashed           its process died
      EndpointError             a server does not start, or does not answer as it should
      DifferentHardware         two results that nobody may compare
      LoadClientDied            a process of the load generator died

Only the command line turns them into text and an exit status, and only `flows.run` asks
`retryable`. An error crosses from a child process to its parent as `to_dict()` and comes back as
the same class through `from_dict`, because both have imported this module and no other has errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class LmflowsError(Exception):
    """Root of every expected failure.

    Args:
        message: what happened, one line, with the offending value.
        where: the file, key path, artifact or step it happened in.
        hint: what the reader can do about it.
    """

    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.message}" + (f" -> {self.hint}" if self.hint else "")

    def __reduce__(self) -> tuple[object, tuple[dict[str, str]]]:
        return from_dict, (self.to_dict(),)

    def to_dict(self) -> dict[str, str]:
        return {
            "type": type(self).__name__,
            "message": self.message,
            "where": self.where,
            "hint": self.hint,
        }


class ConfigError(LmflowsError):
    """A config file or command-line value that cannot be used. Nothing has been started."""

    exit_status = 2


class SourceError(LmflowsError):
    """The model or the text that was named cannot be used as it is."""

    exit_status = 2


class PreflightError(LmflowsError):
    """One or more known traps, found before any long work."""

    exit_status = 2


class TransferError(LmflowsError):
    """A download or upload that broke off; trying again can help."""

    retryable = True


class ArtifactDamaged(LmflowsError):
    """An artifact's files do not match its manifest."""


class ArtifactMissing(LmflowsError):
    """No artifact of that digest in the store."""


class UnsafeManifest(LmflowsError):
    """A manifest that tries to leave its folder or contradicts itself."""


class DiskFull(LmflowsError):
    """The file system ran out of space while a step was writing; nothing half written is left."""


class StoreBusy(LmflowsError):
    """Somebody else works on a store, and only one can."""


class ConditionalWritesIgnored(LmflowsError):
    """A store that takes If-Match or If-None-Match and writes all the same: a promotion there could
    be lost in silence."""


class PromotionRefused(LmflowsError):
    """What was asked to be promoted, rolled back or served may not be; the stage is as it was."""

    exit_status = 3


class SignatureRefused(LmflowsError):
    """A signature that the policy asks for is missing, or does not hold."""

    exit_status = 3


class StaleRef(LmflowsError):
    """A stage moved between being read and being written: somebody else promoted."""


class StepFailed(LmflowsError):
    """A step's child process ended with an unforeseen exception; the log has the traceback."""


class StepCrashed(LmflowsError):
    """A step's child process died without an answer: a signal, an abort from native code, an
    exit."""


class StepTimeout(LmflowsError):
    """A step ran longer than its limit and was killed with all its processes."""


class SmokeTestFailed(LmflowsError):
    """The model loads but does not speak: empty text, NaN logits, endless repetition."""


class VerdictFailed(LmflowsError):
    """The candidate is not good enough; it is kept for inspection and goes nowhere.

    `summary` is what the flow that raises it would have returned, for a caller in the same process
    that knows the flow's type; None from another one.
    """

    exit_status = 3
    summary: object = None


class GpuBusy(LmflowsError):
    """Somebody else holds the GPU memory that a step needs. Trying again can help."""

    retryable = True


class EngineError(LmflowsError):
    """An engine that is not available here, refuses the model, or fails at a request."""


class EngineCrashed(EngineError):
    """An engine's process died: TurboMind aborts from C++ on some configurations. The message has
    its last lines."""


class EndpointError(LmflowsError):
    """A server that did not start, did not answer, or did not answer like the evidence says."""


class DifferentHardware(LmflowsError):
    """Two results that nobody may compare: they hold on different hardware or drivers."""

    exit_status = 2


class LoadClientDied(LmflowsError):
    """A process of the load generator ended in the middle: what it measured is lost."""


def require_ready(problems: list[str]) -> None:
    """Raise one PreflightError that lists all problems, if there are any."""
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise PreflightError(
            "\n".join(f"{number}. {problem}" for number, problem in enumerate(problems, 1)),
            where=f"{count} before any long work was started",
        )


def from_dict(data: dict[str, str]) -> LmflowsError:
    """Rebuild an error from `to_dict()`; an unknown type becomes StepFailed."""
    by_name = {cls.__name__: cls for cls in family(LmflowsError)}
    cls = by_name.get(data["type"], StepFailed)
    return cls(data["message"], where=data["where"], hint=data["hint"])


def family(cls: type[LmflowsError]) -> Iterator[type[LmflowsError]]:
    """A class of errors, and all below it."""
    yield cls
    for child in cls.__subclasses__():
        yield from family(child)
