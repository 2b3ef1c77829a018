"""Quantization: LMDeploy's own AWQ, clean and reproducible, and unpacked to what it stands for."""

# covers tasks/checkpoints/lmdeploy_hooks.py

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from artifacts.manifest import ModelArtifact
from tasks.checkpoints.int4 import ORDER, Int4Weight
from tests.support.quantizing import Bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("quantize"), tiny_model)


@pytest.fixture(scope="module")
def plain(bench: Bench) -> ModelArtifact:
    return bench.quantize().candidate


def test_the_same_recipe_gives_the_same_digest_twice(bench: Bench, plain: ModelArtifact) -> None:
    other = Bench(bench.folder / "elsewhere", bench.model.path)
    assert other.quantize().candidate.digest == plain.digest


def test_the_artifact_is_clean(bench: Bench, plain: ModelArtifact) -> None:
    names = {path.name for path in plain.path.rglob("*")}
    config = json.loads((plain.path / "config.json").read_text())
    assert not [name for name in names if name.endswith(".pth")]
    assert config["use_cache"] is True
    assert config["quantization_config"] == {
        "bits": 4,
        "group_size": 128,
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }
    assert {"chat_template.jinja", "tokenizer.json", "generation_config.json"} <= names
    assert str(bench.folder) not in (plain.path / "config.json").read_text()


def test_the_recipe_says_how_it_was_made(bench: Bench, plain: ModelArtifact) -> None:
    manifest = bench.store.manifest(plain.digest)
    assert (
        manifest.parent("model") == bench.model.digest
        and manifest.parent("texts") == bench.texts.digest
    )
    assert {
        "method",
        "bits",
        "group_size",
        "seed",
        "samples",
        "calibration_sha256",
        "versions",
    } <= manifest.recipe.keys()


def test_a_quantized_model_is_nearly_as_good(bench: Bench, plain: ModelArtifact) -> None:
    before, after = bench.nll(bench.model), bench.nll(plain)
    assert before < after < before + 0.3


def test_scale_search_on_a_cpu_does_not_spoil_the_weights(bench: Bench) -> None:
    """Unmended, LMDeploy's search scales the very tensors it means to restore (see
    tasks.checkpoints.lmdeploy_hooks)."""
    searched = bench.quantize(search_scale=True).candidate
    assert bench.nll(searched) < bench.nll(bench.model) + 0.3


def test_progress_names_every_layer(bench: Bench, plain: ModelArtifact) -> None:
    said = {text for _, text in bench.heard.events}
    assert {
        "calibrating layer 1/2",
        "calibrating layer 2/2",
        "smoothing layer 2/2",
        "packing layer 2/2",
    } <= said


def test_dequantized_weights_are_code_minus_zero_times_scale(plain: ModelArtifact) -> None:
    """One element by hand, straight from the packed integers of a saved checkpoint."""
    tensors = load_file(plain.path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    qweight, qzeros, scales = (
        tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales")
    )
    weight = Int4Weight.from_awq(qweight, qzeros, scales).dequantize()
    row, column = 200, 13  # input 200 is in group 1; output 13 is column 5 of the second int32
    shift = 4 * ORDER.index(5)
    code, zero = (
        int(packed[index, 1].item()) >> shift & 15
        for packed, index in ((qweight, row), (qzeros, 1))
    )
    assert weight[column, row].item() == pytest.approx(
        (code - zero) * scales[1, column].float().item(), rel=1e-6
    )
