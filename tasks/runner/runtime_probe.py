"""What an interpreter has: the versions of what decides an engine's result, and whether our own
child processes can run there. Asked by running it, as a child process would be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from configs import paths
from configs.errors import ConfigError
from tasks.runner import command

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
FIX = (
    "it needs Python 3.11 or later, LMDeploy, and what"
    f" {paths.PROJECT / 'configs' / 'runtimes'}/*.in names"
)
ANSWER = "versions "  # how its line begins: libraries may print lines of their own
PROBE = f"""
import importlib, importlib.metadata, json, platform, sys
libraries, needs = json.loads(sys.argv[1])
found = {{"python": platform.python_version()}}
for name in libraries:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print({ANSWER!r} + json.dumps(found), flush=True)
for name in needs:
    importlib.import_module(name)
"""


def installed(name: str, python: Path) -> dict[str, str]:
    """The versions of Python, and of what counts as far as it is there, in the runtime of that
    name.

    Raises:
        ConfigError: it does not run, or has no LMDeploy.
    """
    return _ask(name, python, (), None)


def require_usable(name: str, python: Path, *, handle: int | None = None) -> dict[str, str]:
    """What `installed` gives, of an environment in which a child process can run.

    Args:
        handle: of a lock that the interpreter holds, too, while it runs.

    Raises:
        ConfigError: what `installed` raises, and for a module that cannot be imported.
    """
    return _ask(name, python, TOOLS.get(name, NEEDS), handle)


def _ask(name: str, python: Path, needs: Sequence[str], handle: int | None) -> dict[str, str]:
    where = f"runtime {name}"
    libraries = TOOLS.get(name, LIBRARIES)
    status, lines = command.run(
        [str(python), "-P", "-c", PROBE, json.dumps([libraries, needs])],
        handle=handle,
        environment={"PYTHONPATH": paths.python_path()},
    )
    answers = [line for line in lines if line.startswith(ANSWER + "{")]
    last = lines[-1].strip() if lines else f"exit status {status}"
    if not answers:
        raise ConfigError(f"{python} does not run: {last}", where=where, hint=FIX)
    found: dict[str, str] = json.loads(answers[0].removeprefix(ANSWER))
    if "lmdeploy" in libraries and "lmdeploy" not in found:
        raise ConfigError(f"{python} has no lmdeploy", where=where, hint=FIX)
    if status:
        raise ConfigError(
            f"{python} cannot import what a child process needs: {last}", where=where, hint=FIX
        )
    return found
