"""What a result holds on: the hardware, by which results may be compared, and its state."""

from __future__ import annotations

import pytest

from configs.errors import DifferentHardware
from tasks.load.environment import require_same
from tasks.load.run import run_loads
from tasks.load.target import at_url
from tests.support.load_testing import load
from tests.support.slow_server import running


def test_different_hardware_is_refused() -> None:
    one = {"name": "NVIDIA H200", "driver": "570.1", "gpus": "1"}
    require_same(one, dict(one))
    with pytest.raises(DifferentHardware, match=r"driver 570.1 and 580.2"):
        require_same(one, one | {"driver": "580.2"})
    with pytest.raises(DifferentHardware, match=r"machine unknown and other"):
        require_same(one, {"machine": "other"})


def test_the_environment_is_stored() -> None:
    with running(ttft=0.01, tpot=0.001) as url:
        environment = run_loads(at_url(url), [load()])[0].environment
    assert {"processor", "cores", "memory"} <= environment.fingerprint.keys()
    assert environment.cpu_share is not None and 0 < environment.cpu_share <= 1
    assert environment.client.keys() == {"python", "lmdeploy-flows", "aiohttp"}
