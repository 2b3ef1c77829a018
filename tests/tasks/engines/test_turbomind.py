"""LMDeploy's api_server: the words it is started with, read by LMDeploy's own parser, and how it is
started."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from artifacts.manifest import ModelArtifact
from configs.deployment import Deploy
from configs.engines import EnginePytorch, EngineTransformers, EngineTurbomind
from configs.paths import PROJECT
from tasks.engines import module_of
from tasks.serving.endpoints import RECORD, Endpoint
from tasks.serving.launch import server_of
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.slow

AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4}}
# Becomes the server of a record as `python -m tasks.serving.launch` does, on a machine without a
# GPU: the engine is not asked whether it is there, and LMDeploy's program tells what it was given
# instead of serving.
LAUNCH = """
import json, sys
from pathlib import Path
import lmdeploy, lmdeploy.cli
from tasks.engines import pytorch, turbomind
from tasks.serving import launch
turbomind.prepare_server = pytorch.prepare_server = lambda folder, tp: None
lmdeploy.cli.run = lambda: print(json.dumps({
    "words": sys.argv, "ps": Path("/proc/self/cmdline").read_text(),
    "environment": Path("/proc/self/environ").read_text()}))

def pipeline_of_0_12(model_path, backend_config=None, log_level="WARNING", **kwargs): ...

if len(sys.argv) > 2:
    lmdeploy.pipeline = pipeline_of_0_12
launch.main()
"""


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    from lmdeploy.cli.cli import CLI
    from lmdeploy.cli.serve import SubCliServe

    SubCliServe.add_parsers()
    parser: argparse.ArgumentParser = CLI.parser
    return parser


def served(
    folder: Path,
    *,
    config: dict[str, Any] = AWQ,
    keys: tuple[str, ...] = (),
    trust: bool = False,
    engine: type[EngineTurbomind | EnginePytorch] = EngineTurbomind,
    options: dict[str, Any] | None = None,
    **engine_options: Any,
) -> Endpoint:
    """The record of an endpoint with the tutorial's options, and some more."""
    folder.joinpath("config.json").write_text(json.dumps(config))
    values = {
        "name": engine.__name__.removeprefix("Engine").lower(),
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


def launch(endpoint: Endpoint, *more: str) -> dict[str, Any]:
    """What the started program is given, and what others see of it."""
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(endpoint.folder / RECORD), *more],
        capture_output=True,
        text=True,
        cwd=PROJECT,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_program_has_the_api_keys_and_nobody_else_can_read_them(
    parser: argparse.ArgumentParser, home: Path, tmp_path: Path
) -> None:
    endpoint = served(tmp_path, keys=("secret-1", "secret-2"), trust=True)
    seen = launch(endpoint)
    assert seen["words"] == words_of(endpoint)
    assert parser.parse_args(seen["words"][1:]).api_keys == ["secret-1", "secret-2"]
    assert (
        str(endpoint.folder / RECORD) in seen["ps"]
        and "secret" not in seen["ps"] + seen["environment"]
    )
    assert "secret" not in (endpoint.folder / RECORD).read_text()


def test_an_lmdeploy_that_trusts_by_itself_is_not_told_to(home: Path, tmp_path: Path) -> None:
    endpoint = served(tmp_path, trust=True)
    words = words_of(endpoint)
    words.remove("--trust-remote-code")
    assert launch(endpoint, "0.12")["words"] == words


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (EngineTurbomind, "engine turbomind: cannot be loaded here"),
        (EnginePytorch, "engine pytorch: needs a CUDA GPU, and there is none"),
    ],
)
def test_without_a_gpu_no_other_engine_is_taken_in_silence(
    home: Path, tmp_path: Path, engine: type[EngineTurbomind | EnginePytorch], words: str
) -> None:
    endpoint = served(tmp_path, engine=engine)
    done = subprocess.run(
        [sys.executable, "-m", "tasks.serving.launch", str(endpoint.folder / RECORD)],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]


def test_the_reference_server_is_told_only_where_its_record_is(home: Path, tmp_path: Path) -> None:
    endpoint = served(tmp_path, keys=("secret",)).model_copy(
        update={"engine": EngineTransformers(name="transformers")}
    )
    record = endpoint.folder / RECORD
    assert words_of(endpoint) == [
        sys.executable,
        "-P",
        "-m",
        "tasks.serving.reference_server",
        str(record),
    ]
