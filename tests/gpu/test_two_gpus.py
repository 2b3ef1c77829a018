"""Tensor parallel: one model over two GPUs. Skipped on a host with fewer."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.engines import EngineTurbomind
from tasks.engines.process import EngineProcess
from tasks.engines.protocol import EngineSpec
from tasks.machine import gpus
from tests.support.text import TEXT


def test_two_gpus_score_and_answer_like_one(padded: Path) -> None:
    seen = gpus.visible()
    if len(seen) < 2:
        pytest.skip("needs two GPUs")
    found = {}
    for tp in (1, 2):
        before = [gpu.free_bytes for gpu in gpus.visible()]
        options = EngineTurbomind(name="turbomind", tp=tp, cache_max_entry_count=0.1)
        with EngineProcess(EngineSpec(folder=padded, engine=options)) as engine:
            taken = [old - gpu.free_bytes for old, gpu in zip(before, gpus.visible(), strict=True)]
            assert [size > 1e9 for size in taken[:2]] == [True, tp == 2]
            found[tp] = float(engine.score([engine.encode(TEXT)])[0].nll.mean())
            assert (
                "Hello"
                in engine.generate([engine.prompt_ids([{"role": "user", "content": "hello"}])], 16)[
                    0
                ].text
            )
    print(found)
    assert found[2] == pytest.approx(found[1], abs=0.005)
