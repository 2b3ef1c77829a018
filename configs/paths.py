"""Where things live on this machine. One home folder; `LMFLOWS_HOME` moves it."""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def python_path() -> str:
    """PYTHONPATH for our own processes: the checkout, then whatever this process was given."""
    return os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])


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


def runs() -> Path:
    """One folder per run, with each step's request, log and answer."""
    return home() / "runs"


def endpoints() -> Path:
    """One folder per endpoint: its record, program file and logs."""
    return home() / "endpoints"
