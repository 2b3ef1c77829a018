"""`python -m tasks.serving.launch RECORD`: become the server of the endpoint whose record
(endpoint.json) is named. Run by the supervisor, in the engine's runtime."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path

from configs.engines import EngineTransformers, EngineTurbomind
from configs.errors import EngineError
from configs.variants import weights_and_kv
from tasks.serving import endpoints


def main() -> None:
    record = Path(sys.argv[1])
    endpoint = endpoints.from_file(record)
    words = command(endpoint, record)
    if isinstance(endpoint.engine, EngineTransformers):
        os.execv(words[0], words)
    from tasks.engines import pytorch, turbomind

    try:
        (turbomind if isinstance(endpoint.engine, EngineTurbomind) else pytorch).prepare_server(
            endpoint
        )
    except EngineError as error:
        sys.exit(str(error))
    import lmdeploy
    from lmdeploy.cli import run

    if "trust_remote_code" not in inspect.signature(lmdeploy.pipeline).parameters:
        # LMDeploy before 0.13 trusts by itself
        words = [word for word in words if word != "--trust-remote-code"]
    sys.argv = words  # in this process: on a command line everybody could read the API keys
    run()


def command(endpoint: endpoints.Endpoint, record: Path) -> list[str]:
    """The server's words: for the reference server a command line, for LMDeploy the arguments of
    its program."""
    if isinstance(endpoint.engine, EngineTransformers):
        return [sys.executable, "-P", "-m", "tasks.serving.reference_server", str(record)]
    return api_server(endpoint)


def api_server(endpoint: endpoints.Endpoint) -> list[str]:
    """The words of the `lmdeploy` program that serve an endpoint of one of its engines: `lmdeploy
    serve api_server ...`."""
    from tasks.engines.turbomind import model_format

    engine, options = endpoint.engine, endpoint.options
    assert not isinstance(engine, EngineTransformers)
    words = [
        "lmdeploy",
        "serve",
        "api_server",
        str(endpoint.artifact.path),
        "--backend",
        engine.name,
        "--model-name",
        endpoint.model_name,
        "--server-name",
        options.host,
        "--server-port",
        str(options.port),
        "--tp",
        str(engine.tp),
        "--cache-max-entry-count",
        str(engine.cache_max_entry_count),
        "--quant-policy",
        str(weights_and_kv(options.variant)[1]),
    ]
    if format_ := model_format(endpoint.artifact.path):
        words += ["--model-format", format_]
    if engine.session_len is not None:
        words += ["--session-len", str(engine.session_len)]
    if endpoint.trust_remote_code:
        words += ["--trust-remote-code"]
    if keys := endpoint.keys():
        words += ["--api-keys", *keys]
    return words


if __name__ == "__main__":
    main()
