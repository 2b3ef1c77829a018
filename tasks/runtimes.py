"""Engine runtimes: named environments in which engines run as child processes, beside the project's own.

`default` is this environment. Every lock file in `configs/runtimes` (shipped) and in `<home>/runtimes` (the user's own) is
another one, and so is every interpreter that was adopted: that one is not locked, and says so by having no digest.

A locked environment lies in `<home>/runtimes/<name>-<first 12 digits of the lock's sha256>`. It is made on first use: under another
name, checked, and renamed last, so that whatever has the final name is whole. Once made it needs no network. A changed lock makes
a new environment; the old one stays until `remove`. Knows nothing of Prefect and of what an engine does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from artifacts.files import disk_full_is_an_error, fsync_folder, is_disk_full, sha256_file, write_atomic
from configs import paths
from configs.errors import ConfigError, DiskFull, EngineError, LmflowsError, TransferError
from tasks.child import kill_group
from tasks.step import versions

DEFAULT = "default"
SHIPPED = paths.PROJECT / "configs" / "runtimes"
LIBRARIES = ("lmdeploy", "torch", "transformers")  # the distributions that decide what an engine computes
# what of ours runs there: an engine, a server, a step
NEEDS = ("tasks.engines.host", "tasks.engines.reference", "tasks.engines.launch", "tasks.stage", "artifacts.store")
NOTE = "runtime.json"  # an environment's versions
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DIGITS = 12
LAST_LINES = 15

Say = Callable[[str], None]


@dataclass(frozen=True)
class Runtime:
    """A named environment.

    Attributes:
        lock: its lock file; None for the project's own and for an adopted one.
        digest: the lock's hex sha256; None means that nothing says what is installed there but `versions`.
        python: its interpreter; there only if `ready`.
        versions: of Python and of LIBRARIES as far as installed; empty until it is ready. An adopted one's are from its adoption.
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


def everyone() -> list[Runtime]:
    """All runtimes: the project's own, those shipped, the user's own, those adopted.

    Raises:
        ConfigError: two have the same name, or a name cannot be one.
    """
    own = Runtime(DEFAULT, None, None, Path(sys.executable), True, versions(LIBRARIES))
    locks = [*sorted(SHIPPED.glob("*.lock")), *sorted(_folder().glob("*.lock"))]
    found = [own, *map(_locked, locks), *map(_adopted, sorted(_folder().glob("*.json")))]
    for name, count in Counter(runtime.name for runtime in found).items():
        if count > 1 or not NAME.fullmatch(name):
            what = f"{count} runtimes are called {name!r}" if count > 1 else f"{name!r} cannot be a runtime's name"
            raise ConfigError(what, where=str(_folder()), hint="rename the file there; letters, digits, dot, dash and underscore are allowed")
    return found


def one(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        ConfigError: there is none; the message has the known names.
    """
    known = {runtime.name: runtime for runtime in everyone()}
    if name not in known:
        raise ConfigError(f"no runtime {name!r}; known: {', '.join(known)}", where="engine.runtime",
                          hint=f"put its lock file into {_folder()}, or adopt an interpreter that has LMDeploy")
    return known[name]


def _silent(_text: str) -> None:
    pass


def python(name: str, *, say: Say = _silent) -> Path:
    """The interpreter of a runtime, prepared on first use. Raises what `prepare` raises."""
    return prepare(name, say=say).python


def prepare(name: str, *, say: Say = _silent, wheels: Path | None = None, offline: bool = False) -> Runtime:
    """Make a runtime's environment if it is not there yet. Two processes that want the same wait for one another.

    Args:
        say: hears what goes on, in lines.
        wheels: install from this folder, without the network. `pip download --require-hashes -r LOCK -d FOLDER` fills one.
        offline: use nothing but what earlier installations have left in uv's cache.

    Raises:
        ConfigError: an unknown name; a file that is not what the lock says; no wheel for this Python; an environment that lacks
            LMDeploy or what a child process needs; an adopted interpreter that is gone.
        TransferError: the package index cannot be reached.
        DiskFull: no space left.
        EngineError: uv failed in another way.
    """
    runtime = one(name)
    if runtime.ready:
        return runtime
    if runtime.lock is None:
        raise ConfigError(f"{runtime.python} is gone", where=f"runtime {name}", hint="adopt the interpreter again, or remove the runtime")
    if wheels is not None and not wheels.is_dir():
        raise ConfigError(f"{wheels} is not a folder", where=f"runtime {name}", hint="name the folder that has the wheels")
    with disk_full_is_an_error(str(_folder())), _alone(say) as handle:
        _sweep()
        runtime = one(name)  # another process may have made it while we waited
        if not runtime.ready:
            _make(runtime, say, handle, wheels, offline)
            runtime = one(name)
            say(f"runtime {name} is ready: " + ", ".join(f"{library} {version}" for library, version in runtime.versions.items()))
    return runtime


def fingerprint(name: str, *, say: Say = _silent) -> dict[str, str]:
    """What belongs into a cache key and into evidence: versions, and for a locked runtime `lock`, its digest.

    The environment is made if need be. Raises what `prepare` raises.
    """
    runtime = prepare(name, say=say)
    if runtime.adopted:  # nobody locks it: it may have changed since
        return _probe(runtime.name, runtime.python, needs=())
    return runtime.versions | ({"lock": runtime.digest} if runtime.digest else {})


def adopt(name: str, python: Path) -> Runtime:
    """Register an interpreter that is there already, in a container or on an offline host. A second time replaces the first.

    Raises:
        ConfigError: the name is taken or cannot be one, or the interpreter lacks LMDeploy or what a child process needs.
    """
    where = f"runtime {name}"
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be a runtime's name", hint="use letters, digits, dot, dash and underscore")
    if any(runtime.name == name and not runtime.adopted for runtime in everyone()):
        raise ConfigError("the name is taken", where=where, hint="choose another one")
    python = Path(os.path.abspath(python.expanduser()))  # not resolved: behind the link of a virtual environment is another one
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise ConfigError(f"{python} is not a program", where=where, hint="name the interpreter itself, for example /opt/lmdeploy/bin/python")
    found = _probe(name, python)
    write_atomic(_folder() / f"{name}.json", json.dumps({"python": str(python), "versions": found}, indent=1).encode())
    return one(name)


def remove(name: str) -> list[Path]:
    """Remove a runtime's environments, those of its earlier locks too, or forget an adopted one. Lock files stay.

    Returns:
        What was removed; empty if nothing had been made.

    Raises:
        ConfigError: an unknown name, or the project's own environment.
        EngineError: a process runs in it.
    """
    if name == DEFAULT:
        raise ConfigError("the project's own environment is not removed", where=f"runtime {name}", hint="`make clean` does that")
    with _alone(_silent):
        _sweep()
        environment = re.compile(re.escape(name) + rf"-[0-9a-f]{{{DIGITS}}}")
        there = [path for path in sorted(_folder().iterdir()) if environment.fullmatch(path.name) or path.name == f"{name}.json"]
        if not there:
            one(name)
        for path in there:
            if pids := _running_in(path):
                raise EngineError(f"process {', '.join(map(str, pids))} runs in {path}", where=f"runtime {name}", hint="stop it, then remove again")
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
        raise ConfigError(f"unreadable ({error})", where=str(note), hint="delete it and adopt the interpreter again") from None
    return Runtime(note.stem, None, None, interpreter, interpreter.exists(), found)


@contextlib.contextmanager
def _alone(say: Say) -> Iterator[int]:
    """One process at a time makes or removes environments. Yields the lock's handle: whoever inherits it keeps the lock."""
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
    """Remove what killed processes have left. Only under the lock, when nobody works on anything."""
    for path in _folder().glob(".*.partial"):
        shutil.rmtree(path)


def _running_in(folder: Path) -> list[int]:
    return [process.pid for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"]
            and Path(process.info["cmdline"][0]).is_relative_to(folder)]


def _make(runtime: Runtime, say: Say, handle: int, wheels: Path | None, offline: bool) -> None:
    """Build a locked environment under another name, check it, rename it."""
    assert runtime.lock is not None
    folder = runtime.python.parents[1]
    partial = _partial(folder)
    interpreter, lock = partial / "bin" / "python", partial / "requirements.lock"
    say(f"making runtime {runtime.name} in {folder}; with torch that is up to 4 GB to download and 8 GB on disk")
    sources = ["--no-index", "--find-links", str(wheels.absolute())] if wheels else ["--offline"] if offline else []
    try:
        # relocatable, because it is renamed; no source builds: they run code of which the lock's hashes say nothing
        _uv(runtime, say, handle, "venv", "--quiet", "--relocatable", "--no-project", "--no-python-downloads",
            "--python", sys.executable, str(partial))
        shutil.copyfile(runtime.lock, lock)
        if sha256_file(lock)[1] != runtime.digest:
            raise ConfigError("changed while it was read", where=str(runtime.lock), hint="run again")
        _uv(runtime, say, handle, "pip", "sync", "--require-hashes", "--no-build", "--compile-bytecode", *sources,
            "--python", str(interpreter), str(lock))
        found = _probe(runtime.name, interpreter, handle=handle)
        write_atomic(partial / NOTE, json.dumps({"lock": runtime.digest, "versions": found}, indent=1).encode())
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
        raise EngineError("uv is not installed in the project's environment", where=f"runtime {runtime.name}", hint="run `make install`") from None
    status, lines = _run([program, *words], handle=handle, say=lambda line: None if line.startswith((" +", "Using Python")) else say(line.strip()))
    if status:
        raise _failure(runtime, status, lines)


def _failure(runtime: Runtime, status: int, lines: Sequence[str]) -> LmflowsError:
    """What uv's last words mean."""
    where, text = f"runtime {runtime.name}", "\n".join(lines)
    start = next((number for number, line in enumerate(lines) if line.startswith("error:")), 0)
    cause = "\n    ".join(filter(None, lines[start:][-LAST_LINES:])).removeprefix("error: ") or f"uv ended with status {status}"
    if is_disk_full(RuntimeError(text)):
        return DiskFull("no space left on the device", where=where,
                        hint=f"free some space, or set LMFLOWS_HOME and UV_CACHE_DIR to a larger disk, then run again: {cause}")
    if "Hash mismatch" in text:
        return ConfigError(f"a file is not what the lock says: {cause}", where=where,
                           hint=f"get it from the index that {runtime.lock} was made from; if `wheels` or a mirror gave it, distrust that")
    if "network was disabled" in text:
        return ConfigError(f"not everything is in uv's cache: {cause}", where=where,
                           hint="prepare it once with the network, or from a folder of wheels")
    if re.search(r"Failed to fetch|error sending request|Request failed after|dns error|operation timed out", text):
        return TransferError(f"the package index cannot be reached: {cause}", where=where,
                             hint="prepare it where there is a network; or give a folder of wheels, which "
                                  f"`pip download --require-hashes -r {runtime.lock} -d FOLDER` fills elsewhere")
    if re.search(r"has no (usable )?wheels|no wheels with|no wheel", text):
        ours = ".".join(map(str, sys.version_info[:2]))
        return ConfigError(f"no wheel for Python {ours} on this machine: {cause}", where=where,
                           hint="make the project's environment with another Python (3.11 to 3.13), or adopt an interpreter")
    if "No solution found" in text:
        return ConfigError(f"a package of the lock is not to be had: {cause}", where=where,
                           hint=f"complete the folder of wheels, or correct {runtime.lock}")
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


def _probe(name: str, python: Path, *, needs: Sequence[str] | None = None, handle: int | None = None) -> dict[str, str]:
    """The versions in an environment, read by running it as a child process would be; and whether that can import what it needs."""
    where, fix = f"runtime {name}", f"it needs Python 3.11 or later, LMDeploy, and what {SHIPPED}/*.in names"
    words = json.dumps([LIBRARIES, NEEDS if needs is None else needs])
    status, lines = _run([str(python), "-P", "-c", PROBE, words], handle=handle, environment={"PYTHONPATH": paths.python_path()})
    answer = [line.removeprefix("versions ") for line in lines if line.startswith("versions {")]
    last = lines[-1].strip() if lines else f"exit status {status}"
    if not answer:
        raise ConfigError(f"{python} does not run: {last}", where=where, hint=fix)
    found: dict[str, str] = json.loads(answer[0])
    if "lmdeploy" not in found:
        raise ConfigError(f"{python} has no lmdeploy", where=where, hint=fix)
    if status:
        raise ConfigError(f"{python} cannot import what a child process needs: {last}", where=where, hint=fix)
    return found


# Runs a program that the kernel kills with its parent, however that ends: prctl(2)'s PR_SET_PDEATHSIG is 1, and outlives the exec.
GUARD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def _run(command: Sequence[str], *, handle: int | None, say: Say = _silent, environment: dict[str, str] | None = None) -> tuple[int, list[str]]:
    """Run a program to its end; (exit status, its lines). It and its children hold `handle`, and so the lock, as long as any of them lives."""
    lines: list[str] = []
    child = subprocess.Popen([sys.executable, "-I", "-c", GUARD, str(os.getpid()), *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, start_new_session=True, pass_fds=[] if handle is None else [handle],
                             env=os.environ | (environment or {}))
    try:
        assert child.stdout is not None
        for line in child.stdout:
            lines.append(line.decode(errors="replace").rstrip())
            say(lines[-1])
        return child.wait(), lines
    finally:
        kill_group(child)
        if child.stdout:
            child.stdout.close()
