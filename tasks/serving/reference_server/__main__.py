"""The server's process: it reads the endpoint's record, loads the model and listens."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from tasks.engines.protocol import EngineSpec
from tasks.engines.transformers import load
from tasks.serving import endpoints
from tasks.serving.reference_server.app import build_app
from tasks.serving.reference_server.service import Service


def main() -> None:
    endpoint = endpoints.from_file(Path(sys.argv[1]))
    engine = load(
        EngineSpec(
            folder=endpoint.artifact.path,
            engine=endpoint.engine,
            trust_remote_code=endpoint.trust_remote_code,
        )
    )
    limits = (
        endpoint.engine.session_len,
        getattr(engine.model.config, "max_position_embeddings", None),
    )
    service = Service(engine, min(limit for limit in limits if limit is not None))
    uvicorn.run(
        build_app(service, endpoint.model_name, endpoint.keys()),
        host=endpoint.options.host,
        port=endpoint.options.port,
        log_level="info",
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
