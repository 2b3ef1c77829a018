"""LMDeploy's api_server: the words that it is started with, read by LMDeploy's own parser."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from configs.engines import EnginePytorch
from tests.support.endpoint_records import AWQ, served, words_of
from tests.support.lmdeploy_cli import api_server_parser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    return api_server_parser()


def parsed(parser: argparse.ArgumentParser, folder: Path, **what: Any) -> argparse.Namespace:
    """What LMDeploy makes of an endpoint's words."""
    words = words_of(served(folder, **what))
    assert words[:3] == ["lmdeploy", "serve", "api_server"]
    return parser.parse_args(words[1:])


def test_the_tutorials_options_arrive(
    parser: argparse.ArgumentParser, home: Path, tmp_path: Path
) -> None:
    given = parsed(parser, tmp_path)
    assert (given.command, given.model_path, given.backend, given.model_name) == (
        "serve",
        str(tmp_path),
        "turbomind",
        "internlm2-chat",
    )
    assert (
        given.cache_max_entry_count,
        given.quant_policy,
        given.server_name,
        given.server_port,
        given.tp,
    ) == (0.4, 0, "0.0.0.0", 23333, 1)
    assert given.model_format == "awq"


def test_other_values_of_the_tutorials_options_arrive_too(
    parser: argparse.ArgumentParser, home: Path, tmp_path: Path
) -> None:
    """None of them is a default of LMDeploy that would be there anyway."""
    given = parsed(
        parser,
        tmp_path,
        tp=2,
        cache_max_entry_count=0.55,
        options={"host": "127.0.0.1", "port": 8000, "variant": "w4a16-kv8"},
    )
    assert (
        given.tp,
        given.cache_max_entry_count,
        given.server_name,
        given.server_port,
        given.quant_policy,
    ) == (2, 0.55, "127.0.0.1", 8000, 8)


def test_the_pytorch_engine_is_named(
    parser: argparse.ArgumentParser, home: Path, tmp_path: Path
) -> None:
    given = parsed(parser, tmp_path, engine=EnginePytorch, tp=4)
    assert (given.backend, given.tp, given.cache_max_entry_count) == ("pytorch", 4, 0.4)


@pytest.mark.parametrize(
    ("variant", "policy"),
    [
        ("fp16", 0),
        ("fp16-kv8", 8),
        ("fp16-kv4", 4),
        ("w4a16", 0),
        ("w4a16-kv8", 8),
        ("w4a16-kv4", 4),
    ],
)
def test_the_variants_kv_cache_is_lmdeploys_quant_policy(
    parser: argparse.ArgumentParser, home: Path, tmp_path: Path, variant: str, policy: int
) -> None:
    assert parsed(parser, tmp_path, options={"variant": variant}).quant_policy == policy


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AWQ, "awq"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({}, None),
    ],
    ids=str,
)
def test_only_a_quantized_artifact_is_served_as_one(
    parser: argparse.ArgumentParser,
    home: Path,
    tmp_path: Path,
    config: dict[str, Any],
    expected: str | None,
) -> None:
    assert parsed(parser, tmp_path, config=config).model_format == expected


@pytest.mark.parametrize("trust", [False, True])
def test_remote_code_runs_only_if_it_is_trusted(
    parser: argparse.ArgumentParser, home: Path, tmp_path: Path, trust: bool
) -> None:
    assert parsed(parser, tmp_path, trust=trust).trust_remote_code is trust


@pytest.mark.parametrize("length", [None, 2048])
def test_the_session_length_passes_through(
    parser: argparse.ArgumentParser, home: Path, tmp_path: Path, length: int | None
) -> None:
    assert parsed(parser, tmp_path, session_len=length).session_len == length


@pytest.mark.parametrize("keys", [(), ("one",), ("one", "two")])
def test_the_api_keys_pass_through(
    parser: argparse.ArgumentParser, home: Path, tmp_path: Path, keys: tuple[str, ...]
) -> None:
    assert parsed(parser, tmp_path, keys=keys, trust=True, session_len=2048).api_keys == (
        list(keys) or None
    )
