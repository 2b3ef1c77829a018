"""Prefect's settings for this project, as environment variables. Call `prepare` before Prefect is
imported.

Whoever has set up Prefect (a profile, an API URL, a PREFECT_HOME) keeps it; else its database lives
in our home.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs import paths
from configs.errors import ConfigError, LmflowsError


def prepare(*, quiet: bool = False) -> None:
    """Set what is not set yet.

    Args:
        quiet: keep Prefect's own log lines off the terminal; the API and the UI still get them.
    """
    set_up = (Path.home() / ".prefect" / "profiles.toml").exists() or {
        "PREFECT_API_URL",
        "PREFECT_PROFILE",
    } & os.environ.keys()
    try:
        paths.home().mkdir(parents=True, exist_ok=True)
        # on a full disk Prefect's server would hang
        (paths.home() / ".probe").write_bytes(bytes(1 << 20))
        (paths.home() / ".probe").unlink()
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}",
            where=f"home folder {paths.home()}",
            hint="free some space, or set LMFLOWS_HOME to another folder",
        ) from None
    if not set_up:
        os.environ.setdefault("PREFECT_HOME", str(paths.home() / "prefect"))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # the default 20 s is short on a busy machine
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    if quiet:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


@contextmanager
def unreachable_is_an_error() -> Iterator[None]:
    """Tell of a Prefect server that cannot be reached or started: Prefect raises a plain
    RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if "API" in str(error):
            raise LmflowsError(
                str(error).splitlines()[0],
                where="Prefect",
                hint="check PREFECT_API_URL (unset it to run without a server)",
            ) from error
        raise
