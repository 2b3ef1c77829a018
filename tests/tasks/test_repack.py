"""Repacking: another container for the same numbers, and an artifact that says where it comes
from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from artifacts.manifest import ModelArtifact
from artifacts.store.local import LocalStore
from configs.errors import SourceError
from tasks.checkpoints import files
from tasks.checkpoints.int4 import Int4Weight, Tensors
from tasks.engines.reference import ReferenceEngine
from tasks.repack import RepackRequest, RepackResult, repack
from tasks.runner.step import Context
from tests.support.int4_layers import awq_layer, same_bits
from tests.support.quantizing import Bench

AWQ = {"bits": 4, "group_size": 32, "quant_method": "awq", "version": "gemm", "zero_point": True}
RECIPE = {"method": "awq", "group_size": 32, "seed": 7}


def committed(folder: Path, store: LocalStore) -> ModelArtifact:
    with store.staging() as staging:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                staging.copy(path, path.relative_to(folder).as_posix())
        return store.commit(staging, "w4a16", recipe=RECIPE)


def repacked(artifact: ModelArtifact, store: LocalStore, group_size: int = 32) -> RepackResult:
    return repack(RepackRequest(model=artifact, group_size=group_size), Context(store))


def logits(folder: Path) -> torch.Tensor:
    model = ReferenceEngine(folder).model
    with torch.inference_mode():
        return model(input_ids=torch.arange(2, 98).view(2, 48), use_cache=False).logits  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """An AWQ model whose sizes are multiples of 32 and not of 128, with random codes, a bias, and
    files beside the weights."""
    folder = tmp_path_factory.mktemp("narrow")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        attention_bias=True,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).half()
    tensors: dict[str, torch.Tensor] = {}
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        if "layers." in name and tensor.dim() == 2:
            out, inputs = tensor.shape
            parts = awq_layer(out, inputs // 32, 32, seed=number)
            parts["scales"] *= 0.01
            tensors |= {name.replace("weight", part): value for part, value in parts.items()}
        else:
            tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    files.write_config(
        folder,
        config.to_dict() | {"architectures": ["LlamaForCausalLM"], "quantization_config": AWQ},
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_model / name, folder / name)
    (folder / "code").mkdir()
    (folder / "code" / "modeling_x.py").write_text("x = 1\n")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def changed(narrow: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the narrow model with something else in config.json or among the tensors (None:
    left out)."""

    def change(tensors: dict[str, torch.Tensor | None] | None = None, **quantization: Any) -> Path:
        folder = Path(shutil.copytree(narrow, tmp_path / "changed"))
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] |= quantization
        (folder / "config.json").write_text(json.dumps(config))
        new = load_file(folder / "model.safetensors") | (tensors or {})
        save_file(
            {name: tensor for name, tensor in new.items() if tensor is not None},
            folder / "model.safetensors",
        )
        return folder

    return change


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("repack"), tiny_model)


@pytest.fixture(scope="module")
def quantized(bench: Bench) -> ModelArtifact:
    """The small model as LMDeploy quantizes it, in groups of 128."""
    return bench.quantize().candidate


@pytest.mark.parametrize("group_size", [128, 32])
def test_what_lmdeploy_quantized_computes_the_same_after_it(
    bench: Bench, quantized: ModelArtifact, group_size: int
) -> None:
    candidate = repacked(quantized, bench.store, group_size).candidate
    assert same_bits(logits(candidate.path), logits(quantized.path))
    down = load_file(candidate.path / "model.safetensors")[
        "model.layers.0.mlp.down_proj.weight_scale"
    ]
    assert down.shape == (128, 256 // group_size) and len(set(down.flatten().tolist())) > 100


def test_a_narrow_model_computes_the_same_after_it(narrow: Path, store: LocalStore) -> None:
    candidate = repacked(committed(narrow, store), store).candidate
    assert same_bits(logits(candidate.path), logits(narrow))


def test_the_logits_would_show_one_changed_code(narrow: Path, changed: Callable[..., Path]) -> None:
    name = "model.layers.0.mlp.up_proj.qweight"
    codes = load_file(narrow / "model.safetensors")[name]
    codes[40, 1] ^= 1
    assert not same_bits(logits(changed({name: codes})), logits(narrow))


def test_the_tensors_are_those_of_the_format(narrow: Path, store: LocalStore) -> None:
    before = load_file(narrow / "model.safetensors")
    after = load_file(
        repacked(committed(narrow, store), store).candidate.path / "model.safetensors"
    )
    layer = "model.layers.1.self_attn.q_proj"
    assert {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in after.items() if layer in name
    } == {
        f"{layer}.weight_packed": (torch.int32, (96, 12)),
        f"{layer}.weight_zero_point": (torch.int32, (12, 3)),
        f"{layer}.weight_scale": (torch.float16, (96, 3)),
        f"{layer}.weight_shape": (torch.int64, (2,)),
        f"{layer}.bias": (torch.float16, (96,)),
    }
    assert after[f"{layer}.weight_shape"].tolist() == [96, 96]
    plain = {name for name in before if not name.endswith(("qweight", "qzeros", "scales"))}
    assert len(plain) == 15 and all(same_bits(before[name], after[name]) for name in plain)
    assert len(after) == len(plain) + 14 * 4


def test_a_plain_tensor_that_is_called_like_a_part_stays(
    changed: Callable[..., Path], store: LocalStore
) -> None:
    mine = torch.arange(4.0)
    candidate = repacked(committed(changed({"model.router.scales": mine}), store), store).candidate
    assert same_bits(load_file(candidate.path / "model.safetensors")["model.router.scales"], mine)


def test_the_config_is_what_turbomind_and_compressed_tensors_ask_for(
    narrow: Path, store: LocalStore
) -> None:
    folder = repacked(committed(narrow, store), store).candidate.path
    before, after = (json.loads((place / "config.json").read_text()) for place in (narrow, folder))
    found = after.pop("quantization_config")
    before.pop("quantization_config")
    assert after == before
    assert (found["quant_method"], found["format"], found["quantization_status"]) == (
        "compressed-tensors",
        "pack-quantized",
        "compressed",
    )
    group = found["config_groups"]["group_0"]
    assert (group["format"], group["targets"], group["input_activations"]) == (
        "pack-quantized",
        ["Linear"],
        None,
    )
    assert (
        group["weights"].items()
        >= {
            "num_bits": 4,
            "type": "int",
            "symmetric": False,
            "strategy": "group",
            "group_size": 32,
        }.items()
    )
    assert found["ignore"] == ["lm_head", "model.embed_tokens"]


def test_a_tied_head_is_ignored_too(changed: Callable[..., Path], store: LocalStore) -> None:
    candidate = repacked(committed(changed({"lm_head.weight": None}), store), store).candidate
    assert (
        "lm_head"
        in json.loads((candidate.path / "config.json").read_text())["quantization_config"]["ignore"]
    )


def test_the_artifact_says_where_it_comes_from(narrow: Path, store: LocalStore) -> None:
    source = committed(narrow, store)
    result = repacked(source, store)
    manifest = store.manifest(result.candidate.digest)
    assert manifest.kind == "w4a16" and manifest.parent("quantized") == source.digest
    assert manifest.recipe.pop("repacked_with").keys() == {
        "python",
        "torch",
        "safetensors",
        "huggingface_hub",
    }
    assert manifest.recipe == RECIPE | {
        "format": "compressed-tensors",
        "group_size": 32,
        "repacked_from": source.digest,
    }
    assert result.candidate_bytes == sum(
        path.stat().st_size for path in result.candidate.path.rglob("*") if path.is_file()
    )
    assert store.verify(result.candidate.digest) == []


def test_every_other_file_comes_along(narrow: Path, store: LocalStore) -> None:
    source, folder = narrow, repacked(committed(narrow, store), store).candidate.path
    names = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert (
        names | {Path("README.md")}
        == {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        and len(names) == 6
    )
    assert all(
        (source / name).read_bytes() == (folder / name).read_bytes()
        for name in names
        if name.name not in ("config.json", "model.safetensors")
    )


def test_the_same_checkpoint_gives_the_same_digest(
    narrow: Path, store: LocalStore, tmp_path: Path
) -> None:
    other = LocalStore(tmp_path / "elsewhere")
    first, second = (
        repacked(committed(narrow, place), place).candidate.digest for place in (store, other)
    )
    assert first == second


def sharded(folder: Path, target: Path) -> Path:
    """The same model in three shards, cut so that the parts of many layers lie in two of them."""
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    (target / "model.safetensors").unlink()
    weight_map = {
        name: f"model-0000{1 + number % 3}-of-00003.safetensors"
        for number, name in enumerate(sorted(tensors))
    }
    for file in set(weight_map.values()):
        save_file(
            {name: tensors[name] for name in tensors if weight_map[name] == file}, target / file
        )
    (target / files.INDEX).write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    )
    return target


def test_a_sharded_checkpoint_stays_sharded(
    narrow: Path, store: LocalStore, tmp_path: Path
) -> None:
    source = committed(sharded(narrow, tmp_path / "sharded"), store)
    folder = repacked(source, store).candidate.path
    index = json.loads((folder / files.INDEX).read_text())
    found = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
    assert len(found) == 3
    assert index["weight_map"] == {
        name: file for file, tensors in found.items() for name in tensors
    }
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for tensors in found.values() for tensor in tensors.values()
    )
    assert (
        len(
            {
                index["weight_map"][f"model.layers.0.mlp.up_proj.{part}"]
                for part in ("weight_packed", "weight_scale", "weight_shape")
            }
        )
        == 1
    )
    whole = load_file(
        repacked(committed(narrow, store), store).candidate.path / "model.safetensors"
    )
    merged = Tensors(folder)
    assert merged.keys() == whole.keys() and all(
        same_bits(merged[name], whole[name]) for name in whole
    )
    assert same_bits(logits(folder), logits(narrow))


def test_large_groups_are_cut_and_the_codes_stay(tmp_path: Path, store: LocalStore) -> None:
    """Groups of 64, which TurboMind serves in neither format, become groups of 32."""
    layer = "model.layers.0.self_attn.o_proj"
    folder = tmp_path / "coarse"
    folder.mkdir()
    parts = awq_layer(96, 3, 64)
    save_file(
        {f"{layer}.{part}": tensor for part, tensor in parts.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(
        json.dumps({"quantization_config": AWQ | {"group_size": 64}})
    )
    tensors = load_file(
        repacked(committed(folder, store), store).candidate.path / "model.safetensors"
    )
    weight = Int4Weight.from_packed(
        *(tensors[f"{layer}.weight_{part}"] for part in ("packed", "zero_point", "scale"))
    )
    assert weight.scales.shape == (96, 6) and torch.equal(
        weight.scales[:, 0::2], weight.scales[:, 1::2]
    )
    assert same_bits(weight.dequantize(), Int4Weight.from_awq(**parts).dequantize())


Q_PROJ = "model.layers.0.self_attn.q_proj"


def refused(folder: Path, store: LocalStore, group_size: int = 32) -> SourceError:
    """The error, after a look that nothing of the attempt is left."""
    source = committed(folder, store)
    with pytest.raises(SourceError) as caught:
        repacked(source, store, group_size)
    assert store.digests() == [source.digest] and not list((store.root / "tmp").glob("*"))
    assert caught.value.where and caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "quantization",
    [
        {"version": "gemv"},
        {"quant_method": "gptq"},
        {"bits": 8},
        {"zero_point": False},
        {"group_size": -1},
    ],
)
def test_another_quantization_is_refused(
    changed: Callable[..., Path], store: LocalStore, quantization: dict[str, Any]
) -> None:
    error = refused(changed(**quantization), store)
    assert (
        "not an AWQ gemm checkpoint" in error.message
        and str(next(iter(quantization.values()))) in error.message
    )


def test_an_unquantized_model_is_refused(tiny_model: Path, store: LocalStore) -> None:
    assert "it is not quantized" in refused(tiny_model, store).message


def test_what_is_repacked_already_is_refused(narrow: Path, store: LocalStore) -> None:
    candidate = repacked(committed(narrow, store), store).candidate
    with pytest.raises(SourceError, match="compressed-tensors"):
        repacked(candidate, store)


def test_a_config_that_lies_about_its_tensors_is_refused(
    tiny_model: Path, tmp_path: Path, store: LocalStore
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "plain"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": AWQ}))
    assert "no tensor is named qweight" in refused(folder, store).message


def test_small_groups_cannot_become_large_ones(narrow: Path, store: LocalStore) -> None:
    error = refused(narrow, store, 128)
    assert (
        "groups of 32 cannot be cut into groups of 128" in error.message
        and error.hint == "choose 32"
    )


def test_groups_that_nothing_fits_are_refused(
    changed: Callable[..., Path], store: LocalStore
) -> None:
    assert refused(changed(group_size=48), store).hint == "quantize it with group size 32 or 128"


def test_a_group_size_that_turbomind_does_not_serve_is_refused(
    narrow: Path, store: LocalStore
) -> None:
    assert "64 is not a group size that TurboMind serves" in refused(narrow, store, 64).message


def test_inputs_that_the_group_size_does_not_divide_are_refused(
    changed: Callable[..., Path], store: LocalStore
) -> None:
    folder = changed({f"{Q_PROJ}.qweight": torch.zeros(80, 12, dtype=torch.int32)})
    assert f"{Q_PROJ} has 80 inputs, which 32 does not divide" in refused(folder, store).message


@pytest.mark.parametrize(
    "tensors",
    [
        {f"{Q_PROJ}.scales": torch.ones(2, 96)},
        {f"{Q_PROJ}.qzeros": None},
        {f"{Q_PROJ}.scales": None},
        {f"{Q_PROJ}.qzeros": torch.zeros(3, 12, dtype=torch.int64)},
        {f"{Q_PROJ}.qweight": torch.zeros(96, 12)},
        {f"{Q_PROJ}.qweight": torch.zeros(96, dtype=torch.int32)},
        {f"{Q_PROJ}.qweight": torch.zeros(64, 12, dtype=torch.int32)},
    ],
    ids=[
        "few scales",
        "no zeros",
        "no scales",
        "long zeros",
        "floating codes",
        "flat codes",
        "few codes",
    ],
)
def test_a_layer_whose_parts_do_not_fit_is_named(
    changed: Callable[..., Path], store: LocalStore, tensors: dict[str, torch.Tensor | None]
) -> None:
    assert (
        f"{Q_PROJ}: qweight, qzeros and scales do not fit each other in groups of 32"
        in refused(changed(tensors), store).message
    )


def test_progress_names_every_shard(narrow: Path, store: LocalStore, tmp_path: Path) -> None:
    source = committed(sharded(narrow, tmp_path / "sharded"), store)
    repack(RepackRequest(model=source, group_size=32), Context(store, events=tmp_path / "events"))
    said = [json.loads(line)["text"] for line in (tmp_path / "events").read_text().splitlines()]
    assert said == [
        *(f"writing model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
        "hashing",
    ]
