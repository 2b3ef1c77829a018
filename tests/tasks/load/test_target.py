"""Which server is meant: addresses, API keys, and the model that a server names."""

from __future__ import annotations

import pytest

from configs.errors import ConfigError, EndpointError
from tasks.load.run import run_loads
from tasks.load.target import at_url
from tests.support.load_testing import load
from tests.support.slow_server import running


def test_an_api_key_comes_from_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAD_TEST_KEY", "secret-1,secret-2")
    with running(ttft=0.005, tpot=0.001, key="secret-1") as url:
        server = at_url(url + "/v1/", api_keys_env="LOAD_TEST_KEY")
        assert run_loads(server, [load(processes=1)])[0].valid
        with pytest.raises(EndpointError, match="http 401"):
            run_loads(at_url(url), [load()])


def test_nobody_there_and_no_address() -> None:
    with pytest.raises(EndpointError, match="first request failed: connection"):
        run_loads(at_url("http://127.0.0.1:9", model="m"), [load()])
    with pytest.raises(EndpointError, match="which model"):
        at_url("http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="no URL"):
        at_url("localhost:8000")
