"""Prefect's settings for this project, as environment variables. Call `prepare` before Prefect is imported.

Whoever has set up Prefect (a profile, an API URL, a PREFECT_HOME) keeps it; else its database lives in our home.
"""

from __future__ import annotations

import os
from pathlib import Path

from configs import paths


def prepare(*, quiet: bool = False) -> None:
    """Set what is not set yet.

    Args:
        quiet: keep Prefect's own log lines off the terminal; the API and the UI still get them.
    """
    set_up = (Path.home() / ".prefect" / "profiles.toml").exists() or {"PREFECT_API_URL", "PREFECT_PROFILE"} & os.environ.keys()
    if not set_up:
        os.environ.setdefault("PREFECT_HOME", str(paths.home() / "prefect"))
        paths.home().mkdir(parents=True, exist_ok=True)  # Prefect makes only the last part of the path
    os.environ.setdefault("PREFECT_LOCAL_STORAGE_PATH", str(paths.home() / "results"))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")  # the default 20 s is short on a busy machine
    if quiet:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
