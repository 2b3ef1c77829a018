"""Preflight: every known trap is found before any long work, all at once, each with its fix."""

# covers artifacts/records/model.py

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from artifacts.manifest import ModelArtifact
from artifacts.store.local import LocalStore
from configs.engines import Engine, EnginePytorch, EngineTransformers, EngineTurbomind
from configs.errors import PreflightError
from configs.quantization import Quantize
from configs.sources import LocalSource
from configs.texts import PythonDocs, Texts
from configs.variants import Variant
from tasks.download import DownloadRequest, download
from tasks.preflight import PreflightRequest, PreflightResult, preflight
from tasks.runner import runtime_probe, runtimes
from tasks.runner.step import Context
from tasks.texts import TextsRequest, texts
from tests.support.interpreters import interpreter

SMALL = {"samples": 4, "sequence_length": 64}
REFERENCE, TURBOMIND, PYTORCH = (
    EngineTransformers(name="transformers"),
    EngineTurbomind(name="turbomind"),
    EnginePytorch(name="pytorch"),
)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def split(store: LocalStore) -> ModelArtifact:
    return texts(
        TextsRequest(config=Texts(source=PythonDocs(type="python_docs"))), Context(store)
    ).texts


def model_with(
    tiny_model: Path, tmp_path: Path, store: LocalStore, *, drop: str | None = None, **config: Any
) -> ModelArtifact:
    """The small model with another config.json."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model", dirs_exist_ok=True))
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    if drop:
        (folder / drop).unlink()
    source = LocalSource(type="local", path=folder)
    return download(DownloadRequest(source=source), Context(store)).model


def question(
    model: ModelArtifact,
    split: ModelArtifact,
    *,
    quantize: dict[str, Any] | None = None,
    engine: Engine = REFERENCE,
    served: Variant = "w4a16",
    **more: Any,
) -> PreflightRequest:
    recipe = Quantize.model_validate(SMALL | (quantize or {}))
    return PreflightRequest(
        model=model, texts=split, quantize=recipe, engine=engine, served=served, **more
    )


def ask(
    store: LocalStore, model: ModelArtifact, split: ModelArtifact, **more: Any
) -> PreflightResult:
    return preflight(question(model, split, **more), Context(store))


def test_a_model_that_fits_passes_and_is_described(
    tiny_model: Path, tmp_path: Path, store: LocalStore, split: ModelArtifact
) -> None:
    result = ask(store, model_with(tiny_model, tmp_path, store), split)
    assert result.architecture == "LlamaForCausalLM" and result.parameters == 426_624
    assert result.candidate_bytes < result.parent_bytes == 2 * result.parameters
    assert (result.hidden_size, result.head_dim, result.vocabulary) == (128, 64, 1024)


@pytest.mark.parametrize(
    ("config", "options", "found"),
    [
        (
            {"architectures": ["GPTNeoXForCausalLM"]},
            {},
            "LMDeploy cannot quantize GPTNeoXForCausalLM -> use one of",
        ),
        (
            {"architectures": ["Qwen3MoeForCausalLM"]},
            {},
            "smoothing map -> quantize it with llm-compressor",
        ),
        (
            {"architectures": ["MistralForCausalLM"]},
            {"engine": TURBOMIND},
            "TurboMind does not serve MistralForCausalLM",
        ),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            {},
            "already quantized (gptq) -> name its fp16 original",
        ),
        (
            {},
            {"engine": TURBOMIND, "served": "w4a16-kv4"},
            "w4a16-kv4: KV int4 aborts TurboMind with head_dim 64 -> use KV int8 (w4a16-kv8)",
        ),
        ({}, {"engine": TURBOMIND}, "turbomind cannot be loaded here"),
        (
            {},
            {"engine": EngineTurbomind(name="turbomind", tp=3)},
            "engine.tp 3 does not divide the model's 2 attention heads",
        ),
        (
            {},
            {"engine": EnginePytorch(name="pytorch", tp=3)},
            "engine.tp 3 does not divide the model's 2 attention heads",
        ),
        ({}, {"quantize": {"dtype": "bfloat16"}}, "set quantize.dtype: float16"),
        (
            {},
            {"quantize": {"group_size": 96}},
            "does not divide the input dimension of model.layers.0.mlp.down_proj.weight",
        ),
        (
            {},
            {"quantize": {"group_size": 96}},
            "quantize.group_size: 64 (for TurboMind 32, with format: compressed-tensors)",
        ),
        (
            {},
            {"quantize": {"samples": 60000}},
            "rows of 64 tokens, quantize.samples asks for 60000 -> lower samples",
        ),
        ({}, {"quantize": {"sequence_length": 2048}}, "more than the model's 1024 positions"),
        (
            {
                "model_type": "internlm2",
                "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.X"},
            },
            {"untrusted_code": {"modeling_internlm2.py": "ab" * 32}},
            "source.trusted_code: {modeling_internlm2.py: abab",
        ),
        (
            {
                "model_type": "internlm2",
                "auto_map": {"AutoModelForCausalLM": "other/repo--modeling.X"},
            },
            {},
            "not a trusted file of this folder",
        ),
    ],
)
def test_each_trap_is_found_with_its_fix(
    tiny_model: Path,
    tmp_path: Path,
    store: LocalStore,
    split: ModelArtifact,
    config: dict[str, Any],
    options: dict[str, Any],
    found: str,
) -> None:
    with pytest.raises(PreflightError) as caught:
        ask(store, model_with(tiny_model, tmp_path, store, **config), split, **options)
    assert found in caught.value.message
    assert all(" -> " in line for line in caught.value.message.splitlines())


def test_an_engine_is_judged_by_its_own_runtime(
    tiny_model: Path,
    tmp_path: Path,
    store: LocalStore,
    split: ModelArtifact,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This environment has no TurboMind to load, another one may; but its server must be able to
    score."""
    monkeypatch.setattr(runtime_probe, "NEEDS", ())  # these have nothing but a version
    model, engine = (
        model_with(tiny_model, tmp_path, store),
        EngineTurbomind(name="turbomind", runtime="container"),
    )
    runtimes.adopt("container", interpreter(tmp_path / "new", "0.14.0"))
    before = preflight.cache_key(question(model, split, engine=engine))
    assert ask(store, model, split, engine=engine).parameters == 426_624
    runtimes.adopt("container", interpreter(tmp_path / "old", "0.13.1"))
    assert preflight.cache_key(question(model, split, engine=engine)) != before
    with pytest.raises(
        PreflightError,
        match=(
            r"1 problem .* LMDeploy 0\.13\.1 \(runtime container\) has no /get_ppl, .* -> use a"
            r" runtime"
        ),
    ):
        ask(store, model, split, engine=engine)


def test_code_that_is_not_pinned_never_runs(
    tiny_model: Path, tmp_path: Path, store: LocalStore, split: ModelArtifact
) -> None:
    """One trusted file must not open the door for another that the tokenizer's config names."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "fine.py").write_text("pass\n")
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "tok.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    values = json.loads((folder / "tokenizer_config.json").read_text()) | {
        "auto_map": {"AutoTokenizer": [None, f"{evil}--tok.X"]}
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    sha = hashlib.sha256((folder / "fine.py").read_bytes()).hexdigest()
    source = LocalSource(type="local", path=folder, trusted_code={"fine.py": sha})
    model = download(DownloadRequest(source=source), Context(store)).model
    with pytest.raises(PreflightError, match="not a trusted file of this folder"):
        ask(store, model, split)
    assert not (tmp_path / "ran").exists()


def test_internlm2_needs_transformers_4(
    tiny_model: Path,
    tmp_path: Path,
    store: LocalStore,
    split: ModelArtifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import transformers

    monkeypatch.setattr(transformers, "__version__", "5.1.0")
    with pytest.raises(PreflightError, match=r"fails under transformers 5\.1\.0"):
        ask(
            store,
            model_with(tiny_model, tmp_path, store, architectures=["InternLM2ForCausalLM"]),
            split,
        )


def test_outputs_that_cannot_be_packed_are_found(
    tiny_model: Path, tmp_path: Path, store: LocalStore, split: ModelArtifact
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-4].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = download(
        DownloadRequest(source=LocalSource(type="local", path=folder)), Context(store)
    ).model
    with pytest.raises(PreflightError, match="252 outputs, which cannot be packed by eights"):
        ask(store, model, split)


def test_a_missing_tokenizer_is_found(
    tiny_model: Path, tmp_path: Path, store: LocalStore, split: ModelArtifact
) -> None:
    with pytest.raises(PreflightError, match="tokenizer cannot be loaded"):
        ask(store, model_with(tiny_model, tmp_path, store, drop="tokenizer.json"), split)


def test_a_missing_chat_template_is_found(
    tiny_model: Path, tmp_path: Path, store: LocalStore, split: ModelArtifact
) -> None:
    with pytest.raises(PreflightError, match=r"no chat template -> add chat_template\.jinja"):
        ask(store, model_with(tiny_model, tmp_path, store, drop="chat_template.jinja"), split)


def test_all_problems_are_told_at_once(
    tiny_model: Path, tmp_path: Path, store: LocalStore, split: ModelArtifact
) -> None:
    with pytest.raises(PreflightError, match="2 problems before any long work"):
        ask(
            store,
            model_with(tiny_model, tmp_path, store),
            split,
            quantize={"group_size": 96, "dtype": "bfloat16"},
        )
