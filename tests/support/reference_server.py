"""The reference server over a model, in a thread of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from tasks.engines.reference import ReferenceEngine
from tasks.serving.reference_server.app import build_app
from tasks.serving.reference_server.service import Service

NAME = "tiny"


@contextmanager
def serving(engine: ReferenceEngine, keys: list[str] | None = None) -> Iterator[str]:
    """The app over an engine, on a free port in a thread; gives its URL."""
    config = uvicorn.Config(
        build_app(Service(engine, 1024), NAME, keys or []),
        port=0,
        log_level="critical",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
