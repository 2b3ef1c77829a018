"""The api_server's command line, read by LMDeploy's own parser."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from artifacts.manifest import ModelArtifact
from configs.schema import DeployTurbomind
from tasks.endpoints import Endpoint
from tasks.engines.launch import command


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    from lmdeploy.cli.cli import CLI
    from lmdeploy.cli.serve import SubCliServe

    SubCliServe.add_parsers()
    parser: argparse.ArgumentParser = CLI.parser
    return parser


def parsed(parser: argparse.ArgumentParser, folder: Path, *, quantized: bool = True, keys: tuple[str, ...] = (), trust: bool = False,
           **options: Any) -> argparse.Namespace:
    """What LMDeploy makes of the command line of an endpoint with the tutorial's options, and some more."""
    folder.joinpath("config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq"}} if quantized else {}))
    tutorial = {"cache_max_entry_count": 0.4, "quant_policy": 0, "host": "0.0.0.0", "port": 23333, "tp": 1}
    endpoint = Endpoint(name="internlm2", model_name="internlm2-chat", trust_remote_code=trust, since=datetime.now(UTC),
                        artifact=ModelArtifact(digest="0" * 64, kind="w4a16" if quantized else "fp16", path=folder),
                        options=DeployTurbomind.model_validate({"engine": "turbomind"} | tutorial | options))
    endpoint.save(list(keys))
    return parser.parse_args(command(endpoint)[1:])


def test_the_tutorials_options_arrive(parser: argparse.ArgumentParser, home: Path, tmp_path: Path) -> None:
    given = parsed(parser, tmp_path)
    assert (given.command, given.model_path, given.backend, given.model_name) == ("serve", str(tmp_path), "turbomind", "internlm2-chat")
    assert (given.cache_max_entry_count, given.quant_policy, given.server_name, given.server_port, given.tp) == (0.4, 0, "0.0.0.0", 23333, 1)


@pytest.mark.parametrize(("quantized", "expected"), [(True, "awq"), (False, None)])
def test_only_a_quantized_artifact_is_served_as_awq(parser: argparse.ArgumentParser, home: Path, tmp_path: Path, quantized: bool,
                                                    expected: str | None) -> None:
    assert parsed(parser, tmp_path, quantized=quantized).model_format == expected


@pytest.mark.parametrize("trust", [False, True])
def test_remote_code_runs_only_if_it_is_trusted(parser: argparse.ArgumentParser, home: Path, tmp_path: Path, trust: bool) -> None:
    assert parsed(parser, tmp_path, trust=trust).trust_remote_code is trust


@pytest.mark.parametrize("length", [None, 2048])
def test_the_session_length_passes_through(parser: argparse.ArgumentParser, home: Path, tmp_path: Path, length: int | None) -> None:
    assert parsed(parser, tmp_path, session_len=length).session_len == length


@pytest.mark.parametrize("keys", [(), ("one",), ("one", "two")])
def test_the_api_keys_pass_through(parser: argparse.ArgumentParser, home: Path, tmp_path: Path, keys: tuple[str, ...]) -> None:
    assert parsed(parser, tmp_path, keys=keys, trust=True, session_len=2048).api_keys == (list(keys) or None)
