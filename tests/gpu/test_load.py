"""What a speed result says of the GPU that it was measured on."""

from __future__ import annotations

import torch

from tasks.load.environment import Watch, fingerprint


def test_clocks_power_and_throttle_reasons_are_sampled_while_it_works() -> None:
    url = "http://127.0.0.1:1"
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    with Watch(url, {"engine": "none"}) as watch:
        for _ in range(300):
            matrix = torch.nn.functional.normalize(matrix @ matrix)
        torch.cuda.synchronize()
    environment = watch.environment()
    assert environment.fingerprint == fingerprint(url) and environment.fingerprint[
        "name"
    ].startswith(torch.cuda.get_device_name()[:6])
    assert {"driver", "architecture", "memory", "gpus"} <= environment.fingerprint.keys()
    state = environment.gpus[0]
    assert state.samples >= 2
    spreads = (
        state.sm_clock_mhz,
        state.memory_clock_mhz,
        state.temperature_c,
        state.power_w,
        state.utilization_percent,
        state.memory_used_bytes,
    )
    for spread in spreads:
        assert spread is not None and 0 <= spread.low <= spread.median <= spread.high
    assert state.power_limit_w and state.power_w and state.power_w.high > 50
    assert all(0 < share <= 1 for share in state.throttle.values())
