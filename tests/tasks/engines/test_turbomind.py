"""TurboMind: what it refuses before it is loaded, and where its tuning lies."""

# covers tasks/engines/pytorch.py

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.variants import KvBits
from tasks.engines import pytorch, transformers, turbomind
from tasks.engines.protocol import EngineModule


@pytest.mark.parametrize(
    ("engine", "kv_bits", "head_dim", "is_refused"),
    [
        (turbomind, 4, 64, True),
        (turbomind, 8, 64, False),
        (turbomind, 0, 64, False),
        (turbomind, 4, 128, False),
        (pytorch, 4, 64, False),
        (transformers, 0, 64, False),
    ],
)
def test_only_what_aborts_the_engine_is_refused(
    engine: EngineModule, kv_bits: KvBits, head_dim: int, is_refused: bool
) -> None:
    assert (engine.refuses_kv(kv_bits, head_dim) is not None) == is_refused


def test_an_architecture_that_it_does_not_serve_is_refused_without_a_gpu() -> None:
    assert turbomind.refuses_architecture("LlamaForCausalLM") is None
    problem = turbomind.refuses_architecture("GPTNeoXForCausalLM") or ""
    assert problem.startswith("TurboMind does not serve GPTNeoXForCausalLM -> choose one of ")
    assert "LlamaForCausalLM" in problem


def test_without_a_gpu_it_says_what_lmdeploy_would_do() -> None:
    problem = turbomind.unavailable() or ""
    assert problem.startswith("cannot be loaded here (")
    assert "fall back to another engine in silence" in problem


def test_a_tuning_is_of_one_shape_and_one_number_of_gpus(home: Path, tmp_path: Path) -> None:
    def tuned(name: str, tp: int, **config: int) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return turbomind.tuning_file(folder, tp)

    first = tuned("a", 1, hidden_size=128)
    assert tuned("b", 1, hidden_size=128) == first, "whatever the folder is called"
    assert tuned("c", 1, hidden_size=256) != first
    assert tuned("a", 2, hidden_size=128) != first
