"""Preflight: every known trap is found before any long work, all at once, each with its fix."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from artifacts.manifest import ModelArtifact
from artifacts.records.model import ModelSummary
from artifacts.store.local import LocalStore
from configs.deployment import Deploy
from configs.engines import Engine, EnginePytorch, EngineTransformers, EngineTurbomind
from configs.errors import ConditionalWritesIgnored, ConfigError, PreflightError
from configs.evaluation import Evaluate
from configs.policy import Policy, SigningKey
from configs.quantization import Quantize
from configs.sources import LocalSource
from configs.texts import PythonDocs, Texts
from configs.variants import Variant
from tasks.capacity import (
    CapacityRequest,
    MachineRequest,
    capacity,
    estimate,
    machine,
)
from tasks.download import DownloadRequest, download
from tasks.machine import gpus
from tasks.machine.ports import port_problem
from tasks.preflight import PreflightRequest, PreflightResult, preflight
from tasks.runner import runtime_probe, runtimes
from tasks.runner.step import Context
from tasks.texts import TextsRequest, texts
from tests.support import s3_server
from tests.support.interpreters import interpreter
from tests.support.nvml import GB, Board, Machine

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
        ({}, {"quantize": {"device": "cuda"}}, "no CUDA GPU here -> run on a GPU worker"),
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
        ask(store, model, split, trust_remote_code=True)
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
            quantize={"group_size": 96, "device": "cuda"},
        )


# -- the machine


def demand(parameters: int, folder: Path, **more: Any) -> CapacityRequest:
    model = ModelSummary(
        architecture="LlamaForCausalLM",
        parameters=parameters,
        parent_bytes=2 * parameters,
        candidate_bytes=parameters // 2,
        hidden_size=4096,
        head_dim=128,
        vocabulary=32000,
    )
    return CapacityRequest.model_validate(
        {
            "model": model,
            "quantize": Quantize(),
            "evaluate": Evaluate(max_perplexity_ratio=1.1),
            "engine": REFERENCE,
            "gpus": None,
            "folders": (folder,),
        }
        | more
    )


def place(folder: Path, **more: Any) -> MachineRequest:
    return MachineRequest.model_validate(
        {
            "quantize": Quantize(),
            "engine": REFERENCE,
            "deploy": None,
            "gpus": None,
            "folders": (folder,),
            "store": str(folder),
        }
        | more
    )


def test_needs_grow_with_the_model(tmp_path: Path) -> None:
    small, large = estimate(demand(10**8, tmp_path)), estimate(demand(10**10, tmp_path))
    assert (
        large.disk_bytes > 20 * small.disk_bytes
        and large.host_bytes > 40e9 > 10e9 > small.host_bytes
    )
    assert small.time_class != large.time_class


def test_too_little_memory_is_found(tmp_path: Path, store: LocalStore) -> None:
    with pytest.raises(PreflightError, match=r"of memory are available, the run needs 4\d\d\d\."):
        capacity(demand(10**12, tmp_path), Context(store))


def test_too_little_disk_is_found(tmp_path: Path, store: LocalStore) -> None:
    with pytest.raises(PreflightError, match=r"has .* GB of free disk, the run needs"):
        capacity(demand(10**14, tmp_path), Context(store))


def test_a_taken_port_is_found(tmp_path: Path, store: LocalStore) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(
            PreflightError, match=f"port {port} on 127.0.0.1 is taken -> set deploy.port"
        ):
            machine(place(tmp_path, deploy=Deploy(port=port)), Context(store))


def test_our_own_endpoints_port_is_not_taken(tmp_path: Path, store: LocalStore) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        deploy = Deploy(port=holder.getsockname()[1])
        assert machine(place(tmp_path, deploy=deploy, port_is_ours=True), Context(store)).gpus == 0


def test_a_host_that_is_no_address_is_found() -> None:
    assert "no address" in (port_problem("no.such.host.invalid", 8000) or "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"engine": EngineTurbomind(name="turbomind", tp=2)},
            "engine turbomind with tp 2 needs as many CUDA GPUs, 0 are here",
        ),
        ({"engine": PYTORCH}, "engine pytorch with tp 1 needs as many CUDA GPUs, 0 are here"),
        ({"gpus": (0,)}, "GPU 0 is not here; visible: none .* -> name GPUs by their positions"),
        ({"quantize": Quantize(device="cuda")}, "no CUDA GPU here"),
        ({"deploy": Deploy(api_keys_env="NO_SUCH_KEYS")}, "NO_SUCH_KEYS is empty -> export"),
        ({"folders": (Path("/dev/null/home"),)}, "cannot be written"),
    ],
)
def test_what_needs_no_model_is_found_before_the_download(
    tmp_path: Path, store: LocalStore, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(PreflightError, match=words):
        machine(place(tmp_path, **options), Context(store))


def test_an_unknown_runtime_is_found_before_the_download(
    tmp_path: Path, store: LocalStore, home: Path
) -> None:
    with pytest.raises(ConfigError, match="no runtime 'nowhere'; known: default, "):
        machine(
            place(tmp_path, engine=EngineTransformers(name="transformers", runtime="nowhere")),
            Context(store),
        )


def test_what_is_there_already_needs_no_room(tmp_path: Path, store: LocalStore) -> None:
    assert capacity(demand(10**13, tmp_path, reused=True), Context(store)).host_bytes > 10**13


def test_a_larger_evaluation_needs_more_memory(tmp_path: Path) -> None:
    large = Evaluate(max_perplexity_ratio=1.1, batch_size=64, max_tokens_per_document=8192)
    assert (
        estimate(demand(10**8, tmp_path, evaluate=large)).host_bytes
        > 100e9
        > estimate(demand(10**8, tmp_path)).host_bytes
    )


def test_the_gpus_that_a_run_may_use_must_have_the_memory(
    tmp_path: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two GPUs is nearly full: a run that may choose takes the other one."""
    monkeypatch.setattr(
        gpus, "pynvml", Machine(Board("GPU-full", used=79 * GB), Board("GPU-free", used=GB))
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    small = {"quantize": Quantize(samples=4, sequence_length=64), "engine": TURBOMIND}
    assert capacity(demand(10**8, tmp_path, **small), Context(store)).gpu_bytes > GB
    assert capacity(demand(10**8, tmp_path, gpus=(1,), **small), Context(store)).gpu_bytes > GB
    with pytest.raises(
        PreflightError,
        match=(
            r"GPU 0 \(NVIDIA H200\) has 1\.0 GB free, the run needs 1\.\d GB -> .*let the run use"
            r" others \(gpus\)"
        ),
    ):
        capacity(demand(10**8, tmp_path, gpus=(0,), **small), Context(store))
    with pytest.raises(PreflightError, match="GPU 0 "):
        capacity(
            demand(10**8, tmp_path, **small | {"engine": EngineTurbomind(name="turbomind", tp=2)}),
            Context(store),
        )
    with pytest.raises(
        PreflightError,
        match=r"3 GPUs are needed, the run may use 2; .* -> allow more GPUs, lower engine\.tp",
    ):
        machine(place(tmp_path, engine=EngineTurbomind(name="turbomind", tp=3)), Context(store))


def test_a_bucket_that_would_lose_a_promotion_is_found_before_anything_else(
    tmp_path: Path, store: LocalStore
) -> None:
    with (
        s3_server.credentials(),
        s3_server.running(conditions=False) as server,
        pytest.raises(ConditionalWritesIgnored),
    ):
        machine(place(tmp_path, store=server.location("team")), Context(store))


def test_a_key_that_cannot_sign_is_found_before_anything_else(
    tmp_path: Path, store: LocalStore
) -> None:
    (tmp_path / "key.pem").write_text("no key")
    policy = Policy(sign=SigningKey(type="key", private_key=tmp_path / "key.pem"))
    with pytest.raises(ConfigError, match=r"key\.pem: is not a private key"):
        machine(place(tmp_path, policy=policy), Context(store))
