"""Runtimes: named environments beside the project's own, in which engines, and tools that would
clash with it, run as child processes.

`default` is this environment. Every lock file in `configs/runtimes` (shipped) and in
`<home>/runtimes` (the user's own) is another one, and so is every interpreter that was adopted:
that one is not locked, and says so by having no digest. Those of TOOLS hold a program and no
engine: they can be prepared and removed like the others, and no engine is ever run in them.

A locked environment lies in `<home>/runtimes/<name>-<first 12 digits of the lock's sha256>`. It is
made on first use: under another name, checked, and renamed last, so that whatever has the final
name is whole. Once made it needs no network. A changed lock makes a new environment; the old one
stays until `remove`. Knows nothing of Prefect and of what an engine does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from artifacts.store.files import (
    disk_full_is_an_error,
    fsync_folder,
    is_disk_full,
    sha256_file,
    write_atomic,
)
from configs import paths
from configs.errors import ConfigError, DiskFull, EngineError, LmflowsError, TransferError
from tasks.runner import command
from tasks.runner.command import Say
from tasks.runner.step import versions

DEFAULT = "default"
SHIPPED = paths.PROJECT / "configs" / "runtimes"
# the distributions that decide what an engine computes
LIBRARIES = ("lmdeploy", "torch", "transformers")
# what of ours runs there: an engine, a server, a step
NEEDS = (
    "tasks.engines.host",
    "tasks.engines.reference",
    "tasks.serving.launch",
    "tasks.runner.child",
    "artifacts.store.local",
)
# runtimes that are no engine's, and the modules that must be there
TOOLS = {"lm-eval": ("lm_eval", "transformers")}
NOTE = "runtime.json"  # an environment's versions
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DIGITS = 12
LAST_LINES = 15


@dataclass(frozen=True)
class Runtime:
    """A named environment.

    Attributes:
        lock: its lock file; None for the project's own and for an adopted one.
        digest: the lock's hex sha256; None means that nothing says what is installed there but
            `versions`.
        python: its interpreter; there only if `ready`.
        versions: of Python and of LIBRARIES as far as installed; empty until it is ready. An
            adopted one's are from its adoption.
    """

    name: str
    lock: Path | None
    digest: str | None
    python: Path
    ready: bool
    versions: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def adopted(self) -> bool:
        return self.lock is None and self.name != DEFAULT

    @property
    def tool(self) -> bool:
        """Whether it holds a program of TOOLS and no engine."""
        return self.name in TOOLS


def list_all() -> list[Runtime]:
    """All runtimes that engines can run in: the project's own, those shipped, the user's own, those
    adopted.

    Raises:
        ConfigError: two have the same name, or a name cannot be one.
    """
    return [runtime for runtime in _all() if not runtime.tool]


def _all() -> list[Runtime]:
    own = Runtime(DEFAULT, None, None, Path(sys.executable), True, versions(LIBRARIES))
    locks = [*sorted(SHIPPED.glob("*.lock")), *sorted(_folder().glob("*.lock"))]
    found = sorted(
        [own, *map(_locked, locks), *map(_adopted, sorted(_folder().glob("*.json")))],
        key=lambda runtime: runtime.tool,
    )
    for name, count in Counter(runtime.name for runtime in found).items():
        if count > 1 or not NAME.fullmatch(name):
            what = (
                f"{count} runtimes are called {name!r}"
                if count > 1
                else f"{name!r} cannot be a runtime's name"
            )
            raise ConfigError(
                what,
                where=str(_folder()),
                hint="rename the file there; letters, digits, dot, dash and underscore are allowed",
            )
    return found


def get(name: str) -> Runtime:
    """The runtime of that name, for an engine.

    Raises:
        ConfigError: there is none, or a tool's has that name; the message has the known names.
    """
    if name in TOOLS:
        raise ConfigError(
            f"{name} is a tool's runtime, and no engine's",
            where="engine.runtime",
            hint=f"choose one of {', '.join(runtime.name for runtime in list_all())}",
        )
    return _named(name, list_all())


def _named(name: str, runtimes: Sequence[Runtime]) -> Runtime:
    known = {runtime.name: runtime for runtime in runtimes}
    if name not in known:
        raise ConfigError(
            f"no runtime {name!r}; known: {', '.join(known)}",
            where="engine.runtime",
            hint=f"put its lock file into {_folder()}, or adopt an interpreter that has LMDeploy",
        )
    return known[name]


def python(name: str, *, say: Say = command.silent) -> Path:
    """The interpreter of an engine's runtime, prepared on first use. Raises what `one` and
    `prepare` raise."""
    return prepare(get(name).name, say=say).python


def run_tool(
    name: str,
    words: Sequence[str],
    *,
    say: Say = command.silent,
    environment: dict[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Run Python with these arguments in a tool's runtime, prepared on first use. It is killed with
    this process, however that ends.

    Args:
        say: hears its lines, as they come.
        environment: variables beside this process's own.

    Returns:
        Its exit status, and the lines of its stdout and stderr. Raises what `prepare` raises.
    """
    return command.run(
        [str(prepare(name, say=say).python), *words], handle=None, say=say, environment=environment
    )


def prepare(
    name: str, *, say: Say = command.silent, wheels: Path | None = None, offline: bool = False
) -> Runtime:
    """Make a runtime's environment if it is not there yet. Two processes that want the same wait
    for one another.

    Args:
        say: hears what goes on, in lines.
        wheels: install from this folder, without the network. `pip download --require-hashes -r
            LOCK -d FOLDER` fills one.
        offline: use nothing but what earlier installations have left in uv's cache.

    Raises:
        ConfigError: an unknown name; a file that is not what the lock says; no wheel for this
            Python; an environment that lacks LMDeploy or what a child process needs; an adopted
            interpreter that is gone.
        TransferError: the package index cannot be reached.
        DiskFull: no space left.
        EngineError: uv failed in another way.
    """
    runtime = _named(name, _all())
    if runtime.ready:
        return runtime
    if runtime.lock is None:
        raise ConfigError(
            f"{runtime.python} is gone",
            where=f"runtime {name}",
            hint="adopt the interpreter again, or remove the runtime",
        )
    if wheels is not None and not wheels.is_dir():
        raise ConfigError(
            f"{wheels} is not a folder",
            where=f"runtime {name}",
            hint="name the folder that has the wheels",
        )
    with disk_full_is_an_error(str(_folder())), _alone(say) as handle:
        _sweep()
        runtime = _named(name, _all())  # another process may have made it while we waited
        if not runtime.ready:
            _make(runtime, say, handle, wheels, offline)
            runtime = _named(name, _all())
            say(
                f"runtime {name} is ready: "
                + ", ".join(f"{library} {version}" for library, version in runtime.versions.items())
            )
    return runtime


def fingerprint(name: str, *, say: Say = command.silent) -> dict[str, str]:
    """What belongs into a cache key and into evidence: versions, and for a locked runtime `lock`,
    its digest.

    The environment is made if need be. Raises what `one` and `prepare` raise.
    """
    runtime = prepare(get(name).name, say=say)
    if runtime.adopted:  # nobody locks it: it may have changed since
        return _probe(runtime.name, runtime.python, needs=())
    return runtime.versions | ({"lock": runtime.digest} if runtime.digest else {})


def adopt(name: str, python: Path) -> Runtime:
    """Register an interpreter that is there already, in a container or on an offline host. A second
    time replaces the first.

    Raises:
        ConfigError: the name is taken or cannot be one, or the interpreter lacks LMDeploy or what a
            child process needs.
    """
    where = f"runtime {name}"
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a runtime's name",
            hint="use letters, digits, dot, dash and underscore",
        )
    if any(runtime.name == name and not runtime.adopted for runtime in _all()):
        raise ConfigError("the name is taken", where=where, hint="choose another one")
    # not resolved: behind the link of a virtual environment is another one
    python = Path(os.path.abspath(python.expanduser()))
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise ConfigError(
            f"{python} is not a program",
            where=where,
            hint="name the interpreter itself, for example /opt/lmdeploy/bin/python",
        )
    found = _probe(name, python)
    write_atomic(
        _folder() / f"{name}.json",
        json.dumps({"python": str(python), "versions": found}, indent=1).encode(),
    )
    return get(name)


def remove(name: str) -> list[Path]:
    """Remove a runtime's environments, those of its earlier locks too, or forget an adopted one.
    Lock files stay.

    Returns:
        What was removed; empty if nothing had been made.

    Raises:
        ConfigError: an unknown name, or the project's own environment.
        EngineError: a process runs in it.
    """
    if name == DEFAULT:
        raise ConfigError(
            "the project's own environment is not removed",
            where=f"runtime {name}",
            hint="`make clean` does that",
        )
    with _alone(command.silent):
        _sweep()
        environment = re.compile(re.escape(name) + rf"-[0-9a-f]{{{DIGITS}}}")
        there = [
            path
            for path in sorted(_folder().iterdir())
            if environment.fullmatch(path.name) or path.name == f"{name}.json"
        ]
        if not there:
            _named(name, _all())
        for path in there:
            if pids := _running_in(path):
                raise EngineError(
                    f"process {', '.join(map(str, pids))} runs in {path}",
                    where=f"runtime {name}",
                    hint="stop it, then remove again",
                )
        for path in there:
            if path.is_dir():
                path = path.rename(_partial(path))
                shutil.rmtree(path)
            else:
                path.unlink()
    return there


def _folder() -> Path:
    return paths.home() / "runtimes"


def _partial(folder: Path) -> Path:
    """Where an environment lies while it is made or removed."""
    return folder.with_name(f".{folder.name}.partial")


def _locked(lock: Path) -> Runtime:
    digest = sha256_file(lock)[1]
    folder = _folder() / f"{lock.stem}-{digest[:DIGITS]}"
    try:
        found = json.loads((folder / NOTE).read_text())["versions"]
    except FileNotFoundError:
        found = {}
    interpreter = folder / "bin" / "python"
    # the link dangles if the Python that it was made with has been removed
    ready = bool(found) and interpreter.exists()
    return Runtime(lock.stem, lock, digest, interpreter, ready, found if ready else {})


def _adopted(note: Path) -> Runtime:
    try:
        data = json.loads(note.read_text())
        interpreter, found = Path(data["python"]), dict(data["versions"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"unreadable ({error})",
            where=str(note),
            hint="delete it and adopt the interpreter again",
        ) from None
    return Runtime(note.stem, None, None, interpreter, interpreter.exists(), found)


@contextlib.contextmanager
def _alone(say: Say) -> Iterator[int]:
    """One process at a time makes or removes environments. Yields the lock's handle: whoever
    inherits it keeps the lock."""
    _folder().mkdir(parents=True, exist_ok=True)
    handle = os.open(_folder() / ".busy", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process makes or removes a runtime; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _sweep() -> None:
    """Remove what killed processes have left. Only under the lock, when nobody works on
    anything."""
    for path in _folder().glob(".*.partial"):
        shutil.rmtree(path)


def _running_in(folder: Path) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and Path(process.info["cmdline"][0]).is_relative_to(folder)
    ]


def _make(runtime: Runtime, say: Say, handle: int, wheels: Path | None, offline: bool) -> None:
    """Build a locked environment under another name, check it, rename it."""
    assert runtime.lock is not None
    folder = runtime.python.parents[1]
    partial = _partial(folder)
    interpreter, lock = partial / "bin" / "python", partial / "requirements.lock"
    say(
        f"making runtime {runtime.name} in {folder}; "
        + (
            "up to 0.3 GB to download and 0.8 GB on disk"
            if runtime.tool
            else "with torch that is up to 4 GB to download and 8 GB on disk"
        )
    )
    sources = (
        ["--no-index", "--find-links", str(wheels.absolute())]
        if wheels
        else ["--offline"]
        if offline
        else []
    )
    try:
        # relocatable, because it is renamed. No source builds: they run code of which the lock's
        # hashes say nothing. Packages of lm-eval's exist as source alone: there the lock names what
        # builds them too, and its hashes hold for that
        _uv(
            runtime,
            say,
            handle,
            "venv",
            "--quiet",
            "--relocatable",
            "--no-project",
            "--no-python-downloads",
            "--python",
            sys.executable,
            str(partial),
        )
        shutil.copyfile(runtime.lock, lock)
        if sha256_file(lock)[1] != runtime.digest:
            raise ConfigError(
                "changed while it was read", where=str(runtime.lock), hint="run again"
            )
        # a tool is started now and then, and compiles the little that it needs by itself
        how = (
            ["--build-constraints", str(lock)]
            if runtime.tool
            else ["--no-build", "--compile-bytecode"]
        )
        _uv(
            runtime,
            say,
            handle,
            "pip",
            "sync",
            "--require-hashes",
            *how,
            *sources,
            "--python",
            str(interpreter),
            str(lock),
        )
        found = _probe(runtime.name, interpreter, handle=handle)
        write_atomic(
            partial / NOTE,
            json.dumps({"lock": runtime.digest, "versions": found}, indent=1).encode(),
        )
        if folder.exists():  # its interpreter is gone
            shutil.rmtree(folder)
        partial.rename(folder)
        fsync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _uv(runtime: Runtime, say: Say, handle: int, *words: str) -> None:
    try:
        from uv import find_uv_bin

        program = find_uv_bin()
    except (ImportError, FileNotFoundError):
        raise EngineError(
            "uv is not installed in the project's environment",
            where=f"runtime {runtime.name}",
            hint="run `make install`",
        ) from None
    status, lines = command.run(
        [program, *words],
        handle=handle,
        say=lambda line: None if line.startswith((" +", "Using Python")) else say(line.strip()),
    )
    if status:
        raise _failure(runtime, status, lines)


def _failure(runtime: Runtime, status: int, lines: Sequence[str]) -> LmflowsError:
    """What uv's last words mean."""
    where, text = f"runtime {runtime.name}", "\n".join(lines)
    start = next((number for number, line in enumerate(lines) if line.startswith("error:")), 0)
    cause = (
        "\n    ".join(filter(None, lines[start:][-LAST_LINES:])).removeprefix("error: ")
        or f"uv ended with status {status}"
    )
    if is_disk_full(RuntimeError(text)):
        return DiskFull(
            "no space left on the device",
            where=where,
            hint=(
                "free some space, or set LMFLOWS_HOME and UV_CACHE_DIR to a larger disk, then run"
                f" again: {cause}"
            ),
        )
    if "Hash mismatch" in text:
        return ConfigError(
            f"a file is not what the lock says: {cause}",
            where=where,
            hint=(
                f"get it from the index that {runtime.lock} was made from; if `wheels` or a mirror"
                " gave it, distrust that"
            ),
        )
    if "network was disabled" in text:
        return ConfigError(
            f"not everything is in uv's cache: {cause}",
            where=where,
            hint="prepare it once with the network, or from a folder of wheels",
        )
    if re.search(
        r"Failed to fetch|error sending request|Request failed after|dns error|operation timed out",
        text,
    ):
        return TransferError(
            f"the package index cannot be reached: {cause}",
            where=where,
            hint=(
                "prepare it where there is a network; or give a folder of wheels, which "
                f"`pip download --require-hashes -r {runtime.lock} -d FOLDER` fills elsewhere"
            ),
        )
    if re.search(r"has no (usable )?wheels|no wheels with|no wheel", text):
        ours = ".".join(map(str, sys.version_info[:2]))
        return ConfigError(
            f"no wheel for Python {ours} on this machine: {cause}",
            where=where,
            hint=(
                "make the project's environment with another Python (3.11 to 3.13), or adopt an"
                " interpreter"
            ),
        )
    if "No solution found" in text:
        return ConfigError(
            f"a package of the lock is not to be had: {cause}",
            where=where,
            hint=f"complete the folder of wheels, or correct {runtime.lock}",
        )
    return EngineError(f"could not be made: {cause}", where=where, hint=f"its lock: {runtime.lock}")


PROBE = """
import importlib, importlib.metadata, json, platform, sys
libraries, needs = json.loads(sys.argv[1])
found = {"python": platform.python_version()}
for name in libraries:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print("versions", json.dumps(found), flush=True)
for name in needs:
    importlib.import_module(name)
"""


def _probe(
    name: str, python: Path, *, needs: Sequence[str] | None = None, handle: int | None = None
) -> dict[str, str]:
    """The versions in an environment, read by running it as a child process would be; and whether
    that can import what it needs."""
    where, fix = (
        f"runtime {name}",
        f"it needs Python 3.11 or later, LMDeploy, and what {SHIPPED}/*.in names",
    )
    tool = TOOLS.get(name)
    words = json.dumps([tool or LIBRARIES, needs if needs is not None else tool or NEEDS])
    status, lines = command.run(
        [str(python), "-P", "-c", PROBE, words],
        handle=handle,
        environment={"PYTHONPATH": paths.python_path()},
    )
    answer = [line.removeprefix("versions ") for line in lines if line.startswith("versions {")]
    last = lines[-1].strip() if lines else f"exit status {status}"
    if not answer:
        raise ConfigError(f"{python} does not run: {last}", where=where, hint=fix)
    found: dict[str, str] = json.loads(answer[0])
    if "lmdeploy" not in found and not tool:
        raise ConfigError(f"{python} has no lmdeploy", where=where, hint=fix)
    if status:
        raise ConfigError(
            f"{python} cannot import what a child process needs: {last}", where=where, hint=fix
        )
    return found
