"""Runtimes: named environments beside the project's own, in which engines, and tools that would
clash with it, run as child processes.

`default` is this environment. Every lock file in `configs/runtimes` (shipped) and in
`<home>/runtimes` (the user's own) is another one, and so is every interpreter that was adopted:
that one is not locked, and says so by having no digest. Those of TOOLS hold a program and no
engine: they can be prepared and removed like the others, and no engine is ever run in them.

A locked environment lies in `<home>/runtimes/<name>-<first 12 digits of the lock's sha256>`. It is
made on first use (`runtime_environment`) and needs no network from then on. A changed lock makes a
new environment; the old one stays until `remove`. Knows nothing of Prefect and of what an engine
does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from artifacts.store.files import disk_full_is_an_error, write_atomic
from configs import paths
from configs.callbacks import Log, no_log
from configs.errors import ConfigError, EngineError
from tasks.runner import command
from tasks.runner.process import module_command
from tasks.runner.runtime_environment import (
    DIGITS,
    Source,
    alone,
    environment_of,
    home,
    make,
    partial,
)
from tasks.runner.runtime_probe import LIBRARIES, TOOLS, installed, require_usable
from tasks.runner.step import versions

DEFAULT = "default"
SHIPPED = paths.PROJECT / "configs" / "runtimes"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
    """Those of engines first."""
    own = Runtime(
        DEFAULT,
        lock=None,
        digest=None,
        python=Path(sys.executable),
        ready=True,
        versions=versions(LIBRARIES),
    )
    locks = [*sorted(SHIPPED.glob("*.lock")), *sorted(home().glob("*.lock"))]
    notes = sorted(home().glob("*.json"))
    found = [own, *map(_locked, locks), *map(_adopted, notes)]
    for name, count in Counter(runtime.name for runtime in found).items():
        problem = None
        if count > 1:
            problem = f"{count} runtimes are called {name!r}"
        elif not NAME.fullmatch(name):
            problem = f"{name!r} cannot be a runtime's name"
        if problem:
            raise ConfigError(
                problem,
                where=str(home()),
                hint="rename the file there; letters, digits, dot, dash and underscore are allowed",
            )
    return sorted(found, key=lambda runtime: runtime.tool)


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
            hint=f"put its lock file into {home()}, or adopt an interpreter that has LMDeploy",
        )
    return known[name]


def python(name: str, *, log: Log = no_log) -> Path:
    """The interpreter of an engine's runtime, prepared on first use. Raises what `get` and
    `prepare` raise."""
    return prepare(get(name).name, log=log).python


def run_tool(
    name: str,
    module: str,
    words: Sequence[str | Path],
    *,
    log: Log = no_log,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Run one of our modules in a tool's runtime, prepared on first use. It is killed with this
    process, however that ends.

    Args:
        log: hears its lines, as they come.
        environment: variables beside this process's own.

    Returns:
        Its exit status, and the lines of its stdout and stderr. Raises what `prepare` raises.
    """
    python = prepare(name, log=log).python
    return command.run(
        module_command(module, *words, python=python), log=log, environment=environment
    )


def prepare(
    name: str, *, log: Log = no_log, wheels: Path | None = None, offline: bool = False
) -> Runtime:
    """Make a runtime's environment if it is not there yet. Two processes that want the same wait
    for one another.

    Args:
        log: hears what goes on, in lines.
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
    with disk_full_is_an_error(str(home())), alone(log) as handle:
        environment = environment_of(runtime.lock)
        if not environment.versions():  # another process may have made it while we waited
            make(environment, Source(wheels, offline), log, handle)
            found = environment.versions().items()
            log(f"runtime {name} is ready: {', '.join(' '.join(version) for version in found)}")
    return _named(name, _all())


def fingerprint(name: str, *, log: Log = no_log) -> dict[str, str]:
    """What belongs into a cache key and into evidence: versions, and for a locked runtime `lock`,
    its digest.

    The environment is made if need be. Raises what `get` and `prepare` raise.
    """
    runtime = prepare(get(name).name, log=log)
    if runtime.adopted:  # nobody locks it: it may have changed since
        return installed(runtime.name, runtime.python)
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
    note = {"python": str(python), "versions": require_usable(name, python)}
    write_atomic(home() / f"{name}.json", json.dumps(note, indent=1).encode())
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
    with alone(no_log):
        environment = re.compile(re.escape(name) + rf"-[0-9a-f]{{{DIGITS}}}")
        there = [
            path
            for path in sorted(home().iterdir())
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
                shutil.rmtree(path.rename(partial(path)))
            else:
                path.unlink()
    return there


def _locked(lock: Path) -> Runtime:
    environment = environment_of(lock)
    found = environment.versions()
    return Runtime(
        lock.stem,
        lock=lock,
        digest=environment.digest,
        python=environment.python,
        ready=bool(found),
        versions=found,
    )


def _adopted(note: Path) -> Runtime:
    try:
        data = json.loads(note.read_text())
        interpreter = Path(data["python"])
        found = dict(data["versions"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"unreadable ({error})",
            where=str(note),
            hint="delete it and adopt the interpreter again",
        ) from None
    return Runtime(
        note.stem,
        lock=None,
        digest=None,
        python=interpreter,
        ready=interpreter.exists(),
        versions=found,
    )


def _running_in(folder: Path) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and Path(process.info["cmdline"][0]).is_relative_to(folder)
    ]
