"""`python -m tasks.serving.launch RECORD`: become the server of the endpoint whose record
(endpoint.json) is named. Run by the supervisor, in the engine's runtime."""

from __future__ import annotations

import sys
from pathlib import Path

from configs.errors import EngineError
from configs.variants import weights_and_kv
from tasks.engines import module_of
from tasks.engines.protocol import EngineSpec, ServerSpec
from tasks.serving import endpoints


def main() -> None:
    record = Path(sys.argv[1])
    endpoint = endpoints.from_file(record)
    engine = module_of(endpoint.engine)
    try:
        engine.prepare_server(endpoint.artifact.path, endpoint.engine.tp)
    except EngineError as error:
        sys.exit(str(error))
    engine.become_server(engine.server_command(server_of(endpoint, record)))


def server_of(endpoint: endpoints.Endpoint, record: Path) -> ServerSpec:
    """What an engine must know of an endpoint to serve it."""
    _, kv_bits = weights_and_kv(endpoint.options.variant)
    model = EngineSpec(
        folder=endpoint.artifact.path,
        engine=endpoint.engine,
        kv_bits=kv_bits,
        trust_remote_code=endpoint.trust_remote_code,
    )
    return ServerSpec(
        record=record,
        model=model,
        model_name=endpoint.model_name,
        host=endpoint.options.host,
        port=endpoint.options.port,
        api_keys=tuple(endpoint.keys()),
    )


if __name__ == "__main__":
    main()
