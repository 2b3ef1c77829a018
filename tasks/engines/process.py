"""An engine in a process of its own, behind the same protocol: native code may abort there, and its
memory comes back for certain when the process ends. The process runs in the engine's runtime, which
need not be this environment.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from artifacts.records.measurement import Scores
from configs.errors import EngineCrashed, LmflowsError, from_dict
from configs.paths import process_environment
from tasks.engines import wire
from tasks.engines.protocol import EngineSpec, Generation
from tasks.runner import runtimes
from tasks.runner.output import last_lines
from tasks.runner.process import Streams, how_it_ended, module_command, start

CLOSING_SECONDS = 20.0


class EngineProcess:
    """A loaded model in its own process. Use it as a context manager: the process ends with the
    block.

    Args:
        log: where the engine's output goes; default: a temporary file, which stays only if an error
            names it.

    Raises:
        EngineError: the engine refuses the model or cannot be loaded.
        EngineCrashed: its process died; the message has its last log lines.
    """

    def __init__(self, spec: EngineSpec, *, log: Path | None = None) -> None:
        self.spec = spec
        python = str(runtimes.python(spec.engine.runtime))
        self.log, self._keep_log = log or _temporary_log(), log is not None
        self._channel, theirs = Pipe()
        with self.log.open("ab") as output:
            self._process = start(
                module_command("tasks.engines.host", str(theirs.fileno()), python=python),
                Streams(stdout=output),
                environment=process_environment(),
                pass_fds=[theirs.fileno()],
                own_session=False,
            )
        theirs.close()
        try:
            loaded = self._ask("load", {"spec": spec.model_dump(mode="json")})[0]
        except BaseException:
            self._end()
            raise
        self.load_seconds: float = loaded["load_seconds"]
        self.vocabulary: int = loaded["vocabulary"]
        self.versions: dict[str, str] = loaded["versions"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def prompt_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        return list(
            self._ask(
                "prompt_ids",
                {
                    "messages": [dict(message) for message in messages],
                    "tools": [dict(tool) for tool in tools or ()],
                },
            )[0]["ids"]
        )

    def encode(self, record: Mapping[str, Any]) -> list[int]:
        return list(self._ask("encode", {"record": dict(record)})[0]["ids"])

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, exact: bool = False
    ) -> list[Generation]:
        answer, _ = self._ask(
            "generate",
            {
                "prompts": [list(map(int, prompt)) for prompt in prompts],
                "max_new_tokens": max_new_tokens,
                "exact": exact,
            },
        )
        return [Generation(**item) for item in answer["answers"]]

    def score(
        self, sequences: Sequence[Sequence[int]], at: Sequence[npt.NDArray[np.int32]] | None = None
    ) -> list[Scores]:
        ids = {} if at is None else {str(number): array for number, array in enumerate(at)}
        _, arrays = self._ask(
            "score", {"sequences": [list(map(int, sequence)) for sequence in sequences]}, ids
        )
        return [
            Scores(
                **{name: arrays[f"{name}.{number}"] for name in ("nll", "top", "ids", "logprobs")}
            )
            for number in range(len(sequences))
        ]

    def close(self) -> None:
        """Ask the process to end, and see to it."""
        with contextlib.suppress(OSError, EOFError, subprocess.TimeoutExpired):
            wire.send(self._channel, {"do": "close"})
            self._process.wait(CLOSING_SECONDS)
        self._end()

    def _ask(
        self, what: str, values: Mapping[str, Any], arrays: wire.Arrays | None = None
    ) -> tuple[dict[str, Any], wire.Arrays]:
        try:
            wire.send(self._channel, {"do": what, **values}, arrays)
            answer, got = wire.receive(self._channel)
        except (EOFError, OSError):
            raise self._crash(what) from None
        if "error" in answer:
            error = from_dict(answer["error"])
            error.hint = error.hint or self._whole_log()
            raise error
        return answer, got

    def _crash(self, what: str) -> LmflowsError:
        try:
            code = self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        how = "no exit status" if code is None else how_it_ended(code)
        return EngineCrashed(
            f"died with {how} while it was asked to {what}; {last_lines(self.log)}",
            where=f"engine {self.spec.engine.name}",
            hint=self._whole_log(),
        )

    def _whole_log(self) -> str:
        self._keep_log = True
        return f"its whole log: {self.log}"

    def _end(self) -> None:
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if not self._keep_log:
            self.log.unlink(missing_ok=True)


def _temporary_log() -> Path:
    handle, name = tempfile.mkstemp(prefix="lmflows-engine-", suffix=".log")
    os.close(handle)
    return Path(name)
