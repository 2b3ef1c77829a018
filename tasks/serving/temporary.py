"""A server for as long as somebody talks to it: no supervisor, no record among the endpoints, gone
with whoever started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from artifacts.manifest import ModelArtifact
from configs.deployment import Deploy
from configs.engines import Engine
from configs.errors import EndpointError
from configs.paths import process_environment
from configs.variants import Variant
from tasks.engines.process import interpreter
from tasks.runner.child import die_with
from tasks.runner.parent import kill_group
from tasks.serving.endpoints import LOG, RECORD, Endpoint

POLL_SECONDS = 0.3
STOP_SECONDS = 20.0
LAST_LINES = 12


@contextmanager
def served(
    folder: Path,
    engine: Engine,
    variant: Variant,
    *,
    trust_remote_code: bool,
    limit_s: float,
    waiting: Callable[[str], None],
) -> Iterator[Endpoint]:
    """Serve a model folder on a free port of this machine while the body runs.

    Raises:
        EndpointError: the server died before it was ready, or the time ran out; with its last log
            lines.
    """
    with tempfile.TemporaryDirectory(prefix="lmflows-chat-") as place:
        # a folder needs no digest to be talked to
        artifact = ModelArtifact(
            digest="0" * 64, kind="fp16" if variant.startswith("fp16") else "w4a16", path=folder
        )
        endpoint = Endpoint(
            name="chat",
            model_name=folder.name,
            artifact=artifact,
            engine=engine,
            trust_remote_code=trust_remote_code,
            options=Deploy(variant=variant, port=_free_port()),
            since=datetime.now(UTC),
        )
        record, log = Path(place) / RECORD, Path(place) / LOG
        record.write_text(endpoint.model_dump_json())
        with log.open("wb") as output:
            server = subprocess.Popen(
                [interpreter(engine), "-P", "-m", "tasks.serving.launch", str(record)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid(), signal.SIGTERM),
                env=os.environ | process_environment(),
            )
        try:
            _wait(server, endpoint, log, limit_s, waiting)
            yield endpoint
        finally:
            _stop(server)


def _wait(
    server: subprocess.Popen[bytes],
    endpoint: Endpoint,
    log: Path,
    limit_s: float,
    waiting: Callable[[str], None],
) -> None:
    started = time.monotonic()
    while True:
        problem = (
            f"not ready after {limit_s:.0f} s" if time.monotonic() - started > limit_s else None
        )
        if server.poll() is not None:
            problem = f"the server ended with status {server.returncode}"
        if problem:
            last = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            raise EndpointError(
                f"{problem}; its last lines:\n    " + "\n    ".join(last or ["(none)"]),
                where=f"engine {endpoint.engine.name}",
                hint="`lmflows run` checks model, engine and machine before it starts anything",
            )
        try:
            if endpoint.call("/health", timeout_s=5).get("status", "healthy") == "healthy":
                return
        except EndpointError:
            waiting(
                f"loading {endpoint.artifact.path.name} with {endpoint.engine.name}:"
                f" {time.monotonic() - started:.0f} s"
            )
        time.sleep(POLL_SECONDS)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, and see to it with all its processes."""
    with suppress(ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(STOP_SECONDS)
    kill_group(server)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
