"""`lmflows ui`: the page asks the server that it came from, at whatever port."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from configs import paths
from tests.support.prefect_server import wait_until_healthy

pytestmark = pytest.mark.slow


def test_on_another_port_the_page_finds_its_server(tmp_path: Path, free_port: int) -> None:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")
    }
    with subprocess.Popen(
        [sys.executable, "-m", "flows.cli.main", "ui", "--port", str(free_port)],
        cwd=paths.PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment | {"LMFLOWS_HOME": str(tmp_path), "HOME": str(tmp_path)},
    ) as process:
        try:
            wait_until_healthy(f"http://127.0.0.1:{free_port}/api")
            with urllib.request.urlopen(
                f"http://127.0.0.1:{free_port}/ui-settings", timeout=10
            ) as answer:
                assert json.load(answer)["api_url"] == "/api"
        finally:
            process.terminate()
