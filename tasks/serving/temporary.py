"""A server for as long as somebody talks to it: no supervisor, no record among the endpoints, gone
with whoever started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from artifacts.manifest import Kind, ModelArtifact
from configs.callbacks import Log
from configs.deployment import Deploy
from configs.engines import Engine
from configs.errors import EndpointError
from configs.paths import process_environment
from configs.variants import Variant
from tasks.runner import runtimes
from tasks.runner.output import last_lines
from tasks.runner.process import Streams, kill_group, module_command, start
from tasks.serving.endpoints import LOG, RECORD, Endpoint

POLL_SECONDS = 0.3
STOP_SECONDS = 20.0


@contextmanager
def served(
    folder: Path,
    engine: Engine,
    variant: Variant,
    *,
    trust_remote_code: bool,
    limit_s: float,
    log: Log,
) -> Iterator[Endpoint]:
    """Serve a model folder on a free port of this machine while the body runs; `log` hears how long
    it has been loading.

    Raises:
        EndpointError: the server died before it was ready, or the time ran out; with its last log
            lines.
    """
    # a folder needs no digest to be talked to
    kind: Kind = "fp16" if variant.startswith("fp16") else "w4a16"
    endpoint = Endpoint(
        name="chat",
        model_name=folder.name,
        artifact=ModelArtifact(digest="0" * 64, kind=kind, path=folder),
        engine=engine,
        trust_remote_code=trust_remote_code,
        options=Deploy(variant=variant, port=_free_port()),
        since=datetime.now(UTC),
    )
    with tempfile.TemporaryDirectory(prefix="lmflows-chat-") as place:
        record = Path(place) / RECORD
        record.write_text(endpoint.model_dump_json())
        written = Path(place) / LOG
        python = str(runtimes.python(engine.runtime))
        with written.open("wb") as output:
            server = start(
                module_command("tasks.serving.launch", record, python=python),
                Streams(stdout=output),
                environment=process_environment(),
                dies_by=signal.SIGTERM,
            )
        try:
            _wait(server, endpoint, written, limit_s, log)
            yield endpoint
        finally:
            _stop(server)


def _wait(
    server: subprocess.Popen[bytes],
    endpoint: Endpoint,
    written: Path,
    limit_s: float,
    log: Log,
) -> None:
    started = time.monotonic()
    while True:
        problem = None
        if server.poll() is not None:
            problem = f"the server ended with status {server.returncode}"
        elif time.monotonic() - started > limit_s:
            problem = f"not ready after {limit_s:.0f} s"
        if problem:
            raise EndpointError(
                f"{problem}; {last_lines(written)}",
                where=f"engine {endpoint.engine.name}",
                hint="`lmflows run` checks model, engine and machine before it starts anything",
            )
        try:
            if endpoint.call("/health", timeout_s=5).get("status", "healthy") == "healthy":
                return
        except EndpointError:
            log(
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
