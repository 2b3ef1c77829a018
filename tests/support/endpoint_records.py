"""Records of endpoints that an engine would serve, and the words that start their servers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from artifacts.manifest import ModelArtifact
from configs.deployment import Deploy
from configs.engines import EngineOptions, EngineTurbomind, name_of
from tasks.engines import module_of
from tasks.serving.endpoints import RECORD, Endpoint
from tasks.serving.launch import server_of

AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4}}


def served(
    folder: Path,
    *,
    config: dict[str, Any] = AWQ,
    keys: tuple[str, ...] = (),
    trust: bool = False,
    engine: type[EngineOptions] = EngineTurbomind,
    options: dict[str, Any] | None = None,
    **engine_options: Any,
) -> Endpoint:
    """The record of an endpoint with the tutorial's options, and some more."""
    folder.joinpath("config.json").write_text(json.dumps(config))
    values = {
        "name": name_of(engine),
        "tp": 1,
        "cache_max_entry_count": 0.4,
    } | engine_options
    endpoint = Endpoint(
        name="internlm2",
        model_name="internlm2-chat",
        trust_remote_code=trust,
        since=datetime.now(UTC),
        artifact=ModelArtifact(digest="0" * 64, kind="w4a16" if config else "fp16", path=folder),
        engine=engine.model_validate(values),
        options=Deploy.model_validate({"host": "0.0.0.0", "port": 23333} | (options or {})),
    )
    endpoint.save(list(keys))
    return endpoint


def words_of(endpoint: Endpoint) -> list[str]:
    server = server_of(endpoint, endpoint.folder / RECORD)
    return module_of(endpoint.engine).server_command(server)
