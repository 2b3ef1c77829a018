"""A locked environment: made whole by uv from its lock file, or not at all.

It is made under another name, checked, and renamed last, so that whatever has the final name is
whole. Nothing is built from source: that runs code of which the lock's hashes say nothing. (Some
packages of lm-eval's exist as source alone: there the lock names what builds them too, and its
hashes hold for that.) Knows nothing of which runtimes there are.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts.store.files import fsync_folder, is_disk_full, sha256_file, write_atomic
from configs import paths
from configs.callbacks import Log
from configs.errors import ConfigError, DiskFull, EngineError, LmflowsError, TransferError
from tasks.runner import command
from tasks.runner.output import LAST_LINES
from tasks.runner.runtime_probe import TOOLS, require_usable

NOTE = "runtime.json"  # an environment's versions
DIGITS = 12  # of the lock's sha256, in the environment's name


@dataclass(frozen=True)
class Environment:
    """What a lock file describes, and where it lies once it is made."""

    name: str
    lock: Path
    digest: str

    @property
    def folder(self) -> Path:
        return home() / f"{self.name}-{self.digest[:DIGITS]}"

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def versions(self) -> dict[str, str]:
        """What is installed in it; empty if it has to be made."""
        if not self.python.exists():  # the link dangles if its Python has been removed
            return {}
        try:
            found: dict[str, str] = json.loads((self.folder / NOTE).read_text())["versions"]
        except FileNotFoundError:
            return {}
        return found


@dataclass(frozen=True)
class Source:
    """Where packages come from: the index, or a folder of wheels, or with `offline` nothing but
    uv's cache."""

    wheels: Path | None = None
    offline: bool = False

    def options(self) -> list[str]:
        if self.wheels is not None:
            return ["--no-index", "--find-links", str(self.wheels.absolute())]
        return ["--offline"] if self.offline else []


def home() -> Path:
    """The folder of all environments, and of the user's own locks."""
    return paths.home() / "runtimes"


def environment_of(lock: Path) -> Environment:
    """The environment that a lock file describes, as it is now."""
    return Environment(lock.stem, lock, sha256_file(lock)[1])


@contextlib.contextmanager
def alone(log: Log) -> Iterator[int]:
    """One process at a time makes or removes environments; what killed ones have left is gone then.

    Yields the lock's handle: whoever inherits it keeps the lock.
    """
    home().mkdir(parents=True, exist_ok=True)
    handle = os.open(home() / ".busy", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log("another process makes or removes a runtime; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        for path in home().glob(".*.partial"):
            shutil.rmtree(path)
        yield handle
    finally:
        os.close(handle)


def partial(folder: Path) -> Path:
    """Where an environment lies while it is made or removed."""
    return folder.with_name(f".{folder.name}.partial")


def make(environment: Environment, source: Source, log: Log, handle: int) -> None:
    """Make an environment, under the lock whose handle is given.

    Raises:
        ConfigError, TransferError, DiskFull, EngineError: as `runtimes.prepare` says.
    """
    tool = environment.name in TOOLS
    scratch = partial(environment.folder)
    lock = scratch / "requirements.lock"
    python = scratch / "bin" / "python"
    cost = "up to 0.3 GB to download and 0.8 GB on disk"
    if not tool:
        cost = "with torch that is up to 4 GB to download and 8 GB on disk"
    log(f"making runtime {environment.name} in {environment.folder}; {cost}")
    uv = _Uv(environment, log, handle)
    try:
        # relocatable, because it is renamed
        uv.run(
            ["venv", "--quiet", "--relocatable", "--no-project", "--no-python-downloads"],
            ["--python", sys.executable, str(scratch)],
        )
        shutil.copyfile(environment.lock, lock)
        if sha256_file(lock)[1] != environment.digest:
            raise ConfigError(
                "changed while it was read", where=str(environment.lock), hint="run again"
            )
        # a tool is started now and then, and compiles the little that it needs by itself
        how = ["--build-constraints", str(lock)] if tool else ["--no-build", "--compile-bytecode"]
        uv.run(
            ["pip", "sync", "--require-hashes", *how, *source.options()],
            ["--python", str(python), str(lock)],
        )
        _finish(environment, scratch, require_usable(environment.name, python, handle=handle))
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _finish(environment: Environment, scratch: Path, versions: dict[str, str]) -> None:
    """Note what is in it, and give it its name."""
    note = {"lock": environment.digest, "versions": versions}
    write_atomic(scratch / NOTE, json.dumps(note, indent=1).encode())
    if environment.folder.exists():  # its interpreter is gone
        shutil.rmtree(environment.folder)
    scratch.rename(environment.folder)
    fsync_folder(environment.folder.parent)


@dataclass(frozen=True)
class _Uv:
    """uv at work for an environment; it and its children hold the lock `handle`."""

    environment: Environment
    log: Log
    handle: int

    def run(self, *words: Sequence[str]) -> None:
        """Run uv with these words; raises what its last words mean if it fails."""
        command_line = [self._program(), *(word for group in words for word in group)]
        status, lines = command.run(command_line, handle=self.handle, log=self._pass_on)
        if status:
            raise _failure(self.environment, status, lines)

    def _program(self) -> str:
        try:
            from uv import find_uv_bin

            return str(find_uv_bin())
        except (ImportError, FileNotFoundError):
            raise EngineError(
                "uv is not installed in the project's environment",
                where=f"runtime {self.environment.name}",
                hint="run `make install`",
            ) from None

    def _pass_on(self, line: str) -> None:
        """Not each package that it has installed."""
        if not line.startswith((" +", "Using Python")):
            self.log(line.strip())


@dataclass(frozen=True)
class _Meaning:
    """What it means when uv's output has a pattern in it. The hint may name `{lock}`."""

    pattern: str
    error: type[LmflowsError]
    message: str
    hint: str


_MEANINGS = (
    _Meaning(
        "Hash mismatch",
        ConfigError,
        "a file is not what the lock says",
        "get it from the index that {lock} was made from; if `wheels` or a mirror gave it, distrust"
        " that",
    ),
    _Meaning(
        "network was disabled",
        ConfigError,
        "not everything is in uv's cache",
        "prepare it once with the network, or from a folder of wheels",
    ),
    _Meaning(
        "Failed to fetch|error sending request|Request failed after|dns error|operation timed out",
        TransferError,
        "the package index cannot be reached",
        "prepare it where there is a network; or give a folder of wheels, which"
        " `pip download --require-hashes -r {lock} -d FOLDER` fills elsewhere",
    ),
    _Meaning(
        "has no (usable )?wheels|no wheels with|no wheel",
        ConfigError,
        f"no wheel for Python {sys.version_info.major}.{sys.version_info.minor} on this machine",
        "make the project's environment with another Python (3.11 to 3.13), or adopt an"
        " interpreter",
    ),
    _Meaning(
        "No solution found",
        ConfigError,
        "a package of the lock is not to be had",
        "complete the folder of wheels, or correct {lock}",
    ),
    _Meaning("", EngineError, "could not be made", "its lock: {lock}"),
)


def _failure(environment: Environment, status: int, lines: Sequence[str]) -> LmflowsError:
    """What uv's last words mean."""
    where = f"runtime {environment.name}"
    text = "\n".join(lines)
    start = next((number for number, line in enumerate(lines) if line.startswith("error:")), 0)
    last = [line for line in lines[start:][-LAST_LINES:] if line]
    cause = "\n    ".join(last).removeprefix("error: ") or f"uv ended with status {status}"
    if is_disk_full(RuntimeError(text)):
        return DiskFull(
            "no space left on the device",
            where=where,
            hint="free some space, or set LMFLOWS_HOME and UV_CACHE_DIR to a larger disk, then run"
            f" again: {cause}",
        )
    meaning = next(meaning for meaning in _MEANINGS if re.search(meaning.pattern, text))
    return meaning.error(
        f"{meaning.message}: {cause}",
        where=where,
        hint=meaning.hint.format(lock=environment.lock),
    )
