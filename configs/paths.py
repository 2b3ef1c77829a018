"""Where things live on this machine. One home folder; `LMFLOWS_HOME` moves it."""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def python_path() -> str:
    """PYTHONPATH for our own processes: the checkout, then whatever this process was given."""
    return os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])


def process_environment() -> dict[str, str]:
    """What each of our own processes (steps, engines, servers) is given beside its parent's
    environment."""
    return {
        "LMFLOWS_HOME": str(home()),
        "PYTHONPATH": python_path(),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # transformers copies a model's own Python files to where it imports them from: not into the
        # user's cache, that nobody sweeps
        "HF_MODULES_CACHE": os.environ.get("HF_MODULES_CACHE", str(home() / "modules")),
        # glibc keeps freed weights in per-thread arenas; few arenas give them back
        "MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "2"),
    }


def home() -> Path:
    """The folder that holds artifacts, runs, endpoints and Prefect's files.

    `$LMFLOWS_HOME`, else `.lmflows` in the checkout, else (installed without one) `~/.lmflows`.
    """
    if value := os.environ.get("LMFLOWS_HOME"):
        return Path(value).expanduser().absolute()
    return (PROJECT if (PROJECT / "pyproject.toml").exists() else Path.home()) / ".lmflows"


def workspace() -> Path:
    """The artifacts that steps have finished on this machine (laid out like a store)."""
    return home() / "workspace"


def default_store() -> Path:
    """Where artifacts are uploaded to if the config names no store."""
    return home() / "store"


def known_stores() -> list[str]:
    """The stores that runs on this machine have uploaded to, as a config names them
    (`configs.location`); the default one first."""
    try:
        others = (home() / "stores").read_text().splitlines()
    except FileNotFoundError:
        others = []
    return list(dict.fromkeys([str(default_store()), *others]))


def remember_store(location: str) -> None:
    """Note a store that a config names, so that the command line looks there too."""
    if location not in known_stores():
        with (home() / "stores").open("a") as file:
            file.write(f"{location}\n")


def runs() -> Path:
    """One folder per run, with each step's request, log and answer."""
    return home() / "runs"


def endpoints() -> Path:
    """One folder per endpoint: its record, program file and logs."""
    return home() / "endpoints"
