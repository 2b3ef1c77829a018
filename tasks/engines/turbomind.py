"""The TurboMind engine: `lmdeploy serve api_server` with the options of the tutorial."""

from __future__ import annotations

from configs.schema import DeployTurbomind
from tasks import model_files
from tasks.endpoints import Endpoint


def serve_command(endpoint: Endpoint) -> list[str]:
    """The words of the `lmdeploy` program that serve an endpoint whose options are DeployTurbomind."""
    options = endpoint.options
    assert isinstance(options, DeployTurbomind)
    words = ["lmdeploy", "serve", "api_server", str(endpoint.artifact.path), "--backend", "turbomind",
             "--model-name", endpoint.model_name, "--server-name", options.host, "--server-port", str(options.port),
             "--tp", str(options.tp), "--cache-max-entry-count", str(options.cache_max_entry_count),
             "--quant-policy", str(options.quant_policy)]
    if "quantization_config" in model_files.read_config(endpoint.artifact.path):
        words += ["--model-format", "awq"]
    if options.session_len is not None:
        words += ["--session-len", str(options.session_len)]
    if endpoint.trust_remote_code:
        words += ["--trust-remote-code"]
    if keys := endpoint.keys():
        words += ["--api-keys", *keys]
    return words
