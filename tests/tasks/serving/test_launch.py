"""How a server is started: what its program is given, and what others see of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.engines import EnginePytorch, EngineTurbomind
from configs.paths import PROJECT
from tasks.serving.endpoints import RECORD, Endpoint
from tests.support.endpoint_records import served, words_of
from tests.support.lmdeploy_cli import api_server_parser
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.slow

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
    home: Path, tmp_path: Path
) -> None:
    endpoint = served(tmp_path, keys=("secret-1", "secret-2"), trust=True)
    seen = launch(endpoint)
    assert seen["words"] == words_of(endpoint)
    assert api_server_parser().parse_args(seen["words"][1:]).api_keys == ["secret-1", "secret-2"]
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
