"""The tutorial's model family through the whole flow on a CPU: its own Python files, trusted by
hash, from source to endpoint.

The weights are the small model's, rewritten as an InternLM2. `tests/gpu/test_internlm2.py` does it
with SmolLM2 and TurboMind.
"""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
import yaml

from configs.errors import TransferError
from tests.support.internlm2 import CODE, convert, remote_code
from tests.support.patience import PATIENCE
from tests.support.site import Site


@pytest.fixture
def site(
    tmp_path: Path,
    tiny_model: Path,
    free_port: int,
    prefect_api: str,
    request: pytest.FixtureRequest,
) -> Site:
    try:
        code = remote_code(request.config.cache.mkdir("internlm2_code"))
    except TransferError as error:
        pytest.skip(f"InternLM2's Python files are not here and cannot be fetched: {error}")
    convert(tiny_model, tmp_path / "internlm2", code)
    return Site(tmp_path, tmp_path / "internlm2", free_port, prefect_api)


@pytest.mark.slow
def test_internlm2_from_its_files_to_an_endpoint(site: Site) -> None:
    status, output = site.run()
    # nobody has trusted it yet
    assert status == 2 and "its own Python code" in output and "modeling_internlm2.py" in output
    config = yaml.safe_load(site.config.read_text())
    config["source"]["trusted_code"] = CODE
    site.config.write_text(yaml.safe_dump(config))
    try:
        status, output = site.run()
        assert status == 0, output
        assert "PASS within the margin" in output
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 16,
            "temperature": 0,
        }
        chat = urllib.request.Request(
            f"http://127.0.0.1:{site.port}/v1/chat/completions",
            headers={"Content-Type": "application/json"},
            data=json.dumps(body).encode(),
        )
        with urllib.request.urlopen(chat, timeout=PATIENCE) as answer:
            assert json.load(answer)["choices"][0]["message"]["content"].startswith("Hello")
    finally:
        site.call("stop", "--all")
