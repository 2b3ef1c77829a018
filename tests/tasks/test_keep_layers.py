"""Layers that stay in fp16: the ones that are hurt are found, and only they are the parent's again.
A real model, really quantized."""

# covers tasks/checkpoints/rewrite.py

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts.manifest import ModelArtifact
from artifacts.store.local import LocalStore
from configs.errors import SourceError
from configs.quantization import Quantize
from configs.sources import LocalSource
from configs.texts import PythonDocs, Texts
from tasks.checkpoints.files import read_config
from tasks.checkpoints.int4 import Tensors
from tasks.download import DownloadRequest, download
from tasks.engines.reference import ReferenceEngine
from tasks.keep_layers import KeepLayersRequest, KeepLayersResult, keep_layers
from tasks.quantize import QuantizeRequest, quantize
from tasks.runner.step import Context
from tasks.texts import TextsRequest, texts

RECIPE = Quantize(samples=4, sequence_length=64, batch_size=4, keep_layers=1)


class Place:
    def __init__(self, folder: Path, model: Path) -> None:
        self.store = LocalStore(folder)
        self.context = Context(self.store)
        self.texts = texts(
            TextsRequest(config=Texts(source=PythonDocs(type="python_docs"))), self.context
        ).texts
        self.parent = download(
            DownloadRequest(source=LocalSource(type="local", path=model)), self.context
        ).model
        self.quantized = quantize(
            QuantizeRequest(
                model=self.parent,
                texts=self.texts,
                config=RECIPE.model_copy(update={"keep_layers": 0}),
            ),
            self.context,
        ).candidate

    def keep(
        self, quantized: ModelArtifact | None = None, config: Quantize = RECIPE
    ) -> KeepLayersResult:
        request = KeepLayersRequest(
            parent=self.parent,
            quantized=quantized or self.quantized,
            texts=self.texts,
            config=config,
        )
        return keep_layers(request, self.context)

    def hurt(self, layer: int) -> ModelArtifact:
        """The quantized model with another scale in one layer."""
        with self.store.staging() as staging:
            for path in self.quantized.path.iterdir():
                if path.name != "model.safetensors":
                    staging.copy(path, path.name)
            tensors = load_file(self.quantized.path / "model.safetensors")
            tensors[f"model.layers.{layer}.mlp.down_proj.scales"] *= 1.5
            save_file(tensors, staging.path / "model.safetensors", metadata={"format": "pt"})
            return self.store.commit(staging, "w4a16", recipe={"hurt": layer})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Place:
    return Place(tmp_path_factory.mktemp("keep"), tiny_model)


@pytest.fixture(scope="module")
def kept(place: Place) -> KeepLayersResult:
    return place.keep()


@pytest.mark.parametrize("layer", [0, 1])
def test_the_layer_that_is_hurt_is_the_one_that_is_kept(place: Place, layer: int) -> None:
    result = place.keep(place.hurt(layer))
    assert result.damage[0][0] == layer and result.damage[0][1] > 2 * result.damage[1][1] > 0
    assert place.store.manifest(result.candidate.digest).recipe["keep_layers"] == [layer]


def test_the_kept_layer_is_the_parents_and_the_rest_as_it_was(
    place: Place, kept: KeepLayersResult
) -> None:
    found, quantized, parent = (
        Tensors(artifact.path) for artifact in (kept.candidate, place.quantized, place.parent)
    )
    layer = f"model.layers.{kept.damage[0][0]}."
    assert {name for name in found if name.startswith(layer)} == {
        name for name in parent if name.startswith(layer)
    }
    assert all(torch.equal(found[name], parent[name]) for name in found if name.startswith(layer))
    rest = {name for name in quantized if not name.startswith(layer)}
    assert rest == {name for name in found if not name.startswith(layer)}
    assert all(torch.equal(found[name], quantized[name]) for name in rest)


def test_it_says_what_it_is(place: Place, kept: KeepLayersResult) -> None:
    config, manifest = read_config(kept.candidate.path), place.store.manifest(kept.candidate.digest)
    assert config["quantization_config"]["modules_to_not_convert"] == [
        f"model.layers.{kept.damage[0][0]}."
    ]
    assert config["quantization_config"]["quant_method"] == "awq" and kept.candidate.kind == "w4a16"
    assert (manifest.parent("quantized"), manifest.parent("model")) == (
        place.quantized.digest,
        place.parent.digest,
    )
    assert (
        manifest.recipe["samples"] == 4
        and manifest.recipe["quantized_from"] == place.quantized.digest
    )
    assert (
        place.store.manifest(place.quantized.digest).size
        < kept.candidate_bytes
        < place.store.manifest(place.parent.digest).size
    )


def test_the_model_is_nearer_to_its_parent(place: Place, kept: KeepLayersResult) -> None:
    ids = ReferenceEngine(place.parent.path).encode(
        {"text": "The value of the expression is a new list object with the items of the sequence."}
    )

    def distance(folder: Path) -> float:
        with torch.inference_mode():
            right, other = (
                ReferenceEngine(path).model(input_ids=torch.tensor([ids])).logits.log_softmax(-1)
                for path in (place.parent.path, folder)
            )
        return float((right.exp() * (right - other)).sum(-1).mean())

    assert 0 < distance(kept.candidate.path) < distance(place.quantized.path)


def test_a_model_without_quantized_layers_is_refused(place: Place) -> None:
    with pytest.raises(SourceError, match="2 of 2 layers in fp16 leave no 4-bit model"):
        place.keep(config=RECIPE.model_copy(update={"keep_layers": 2}))
