"""LMDeploy's engines on a real GPU: their scores, their answers, how they fail, and what they keep
between starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from configs.engines import EnginePytorch, EngineTransformers, EngineTurbomind
from configs.errors import EngineCrashed, EngineError, GpuBusy
from configs.evaluation import Benchmark
from configs.variants import KvBits
from tasks.engines.process import EngineProcess
from tasks.engines.protocol import EngineSpec
from tasks.engines.speed import speeds
from tasks.engines.turbomind import tuning_file
from tasks.machine import gpus
from tasks.machine.sampler import GpuMemoryMeter
from tests.support.text import TEXT

TURBOMIND = EngineTurbomind(name="turbomind", cache_max_entry_count=0.1)
PYTORCH = EnginePytorch(name="pytorch", cache_max_entry_count=0.1)


def engine(
    folder: Path, options: EngineTurbomind | EnginePytorch | EngineTransformers, kv_bits: KvBits = 0
) -> EngineProcess:
    return EngineProcess(EngineSpec(folder=folder, engine=options, kv_bits=kv_bits))


@pytest.fixture(scope="module")
def reference(padded: Path) -> tuple[list[int], float]:
    """Token ids, and their mean NLL by the reference engine."""
    with engine(padded, EngineTransformers(name="transformers")) as loaded:
        ids = loaded.encode(TEXT)
        return ids, float(loaded.score([ids])[0].nll.mean())


@pytest.mark.parametrize(
    ("options", "kv_bits", "tolerance"),
    [(TURBOMIND, 0, 0.005), (TURBOMIND, 8, 0.02), (PYTORCH, 0, 0.005)],
)
def test_it_scores_and_answers_like_the_reference(
    padded: Path,
    reference: tuple[list[int], float],
    options: EngineTurbomind,
    kv_bits: KvBits,
    tolerance: float,
) -> None:
    ids, expected = reference
    with engine(padded, options, kv_bits) as loaded:
        first = loaded.score([ids, ids[:40]])
        assert float(first[0].nll.mean()) == pytest.approx(expected, abs=tolerance)
        assert first[1].nll == pytest.approx(first[0].nll[:39], abs=0.05)
        again = loaded.score([ids], [first[0].ids])[0]
        assert again.logprobs == pytest.approx(first[0].logprobs, abs=0.1)
        assert np.exp(first[0].logprobs.astype(float)).sum(-1).max() < 1.001
        hello = loaded.prompt_ids([{"role": "user", "content": "hello"}])
        answers = loaded.generate([hello, hello], 32)
        assert "Hello" in answers[0].text and answers[0].finish_reason == "stop"
        assert [answer.tokens for answer in loaded.generate([hello, hello], 9, exact=True)] == [
            9,
            9,
        ]


def test_kv_int4_with_head_dim_64_is_a_typed_error_with_the_engines_last_lines(
    padded: Path,
) -> None:
    with (
        pytest.raises((EngineCrashed, EngineError)) as caught,
        engine(padded, TURBOMIND, 4) as loaded,
    ):
        loaded.generate([loaded.prompt_ids([{"role": "user", "content": "hello"}])], 16)
    print(caught.value)
    assert "engine turbomind" in str(caught.value)


def test_an_unservable_group_size_is_an_error_and_no_fallback(padded: Path, tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(padded, tmp_path / "odd")
    config = json.loads((tmp_path / "odd/config.json").read_text())
    config["quantization_config"] = {
        "bits": 4,
        "group_size": 64,
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }
    (tmp_path / "odd/config.json").write_text(json.dumps(config))
    with pytest.raises((EngineCrashed, EngineError), match="64"):
        engine(tmp_path / "odd", TURBOMIND)


def test_tuning_is_kept_and_used_again(padded: Path, home: Path) -> None:
    with engine(padded, TURBOMIND) as first:
        slow = first.load_seconds
    kept = sorted((home / "tuning").iterdir())
    assert len(kept) == 1 and kept[0].stat().st_size > 0
    before = kept[0].read_bytes()
    with engine(padded, TURBOMIND) as second:
        print(f"load without tuning {slow:.2f} s, with {second.load_seconds:.2f} s")
    assert kept[0].read_bytes() == before
    assert tuning_file(padded, 1).name != tuning_file(padded, 2).name


def test_its_memory_is_read_and_comes_back(padded: Path) -> None:
    before = gpus.used_bytes()
    with engine(padded, TURBOMIND) as loaded:
        taken = gpus.used_bytes() - before
        figures = speeds(
            loaded,
            Benchmark(batch_sizes=(1, 4), prompt_tokens=64, new_tokens=16, rounds=2),
            lambda *_: None,
        )
    assert taken > 5e9  # a tenth of a large card's memory is the KV cache
    assert [len(speed.decode) for speed in figures] == [2, 2] and min(figures[1].decode) > 0
    assert gpus.used_bytes() - before < 2e8


def test_nvml_and_its_meter_see_an_allocation() -> None:
    import torch

    seen = gpus.visible()[:1]
    assert seen[0].architecture.startswith("sm_") and seen[0].total_bytes > seen[0].free_bytes > 0
    with GpuMemoryMeter(seen) as meter:
        held = torch.zeros(500_000_000, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        meter.sample()
        del held
    assert meter.peak_bytes is not None and meter.peak_bytes >= 500_000_000
    with pytest.raises(GpuBusy, match="a test"):
        gpus.require_free(seen, 10**15, what="a test")
