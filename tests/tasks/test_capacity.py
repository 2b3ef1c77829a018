"""Capacity: what this machine lacks is found before any long work, each with its fix."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from artifacts.manifest import ModelArtifact
from artifacts.records.model import ModelSummary
from artifacts.store.local import LocalStore
from configs.deployment import Deploy
from configs.engines import EnginePytorch, EngineTransformers, EngineTurbomind
from configs.errors import ConditionalWritesIgnored, ConfigError, PreflightError
from configs.evaluation import Evaluate
from configs.policy import Destination, Policy, SigningKey
from configs.quantization import Quantize
from configs.schema import Pipeline
from configs.sources import LocalSource
from configs.texts import PythonDocs, Texts
from tasks.capacity import (
    CapacityRequest,
    MachineRequest,
    capacity,
    estimate,
    machine,
)
from tasks.machine import gpus
from tasks.runner.step import Context
from tasks.serving import supervisor
from tasks.serving.endpoints import Endpoint
from tests.support import s3_server
from tests.support.nvml import GB, Board, Machine

REFERENCE, TURBOMIND, PYTORCH = (
    EngineTransformers(name="transformers"),
    EngineTurbomind(name="turbomind"),
    EnginePytorch(name="pytorch"),
)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def pipeline(folder: Path, **more: Any) -> Pipeline:
    plain = Pipeline(
        name="tiny",
        source=LocalSource(type="local", path=folder),
        texts=Texts(source=PythonDocs(type="python_docs")),
        evaluate=Evaluate(max_perplexity_ratio=1.1),
        engine=REFERENCE,
    )
    return plain.model_copy(update=more)


def demand(parameters: int, folder: Path, *, reused: bool = False, **more: Any) -> CapacityRequest:
    model = ModelSummary(
        architecture="LlamaForCausalLM",
        parameters=parameters,
        parent_bytes=2 * parameters,
        candidate_bytes=parameters // 2,
        hidden_size=4096,
        head_dim=128,
        vocabulary=32000,
    )
    request = CapacityRequest(
        pipeline=pipeline(folder, **more), destination=Destination(store=str(folder)), model=model
    )
    return request.model_copy(update={"reused": reused})


def place(folder: Path, *, policy: Policy | None = None, **more: Any) -> MachineRequest:
    store = more.pop("store", str(folder))
    return MachineRequest(
        pipeline=pipeline(folder, **more),
        destination=Destination(store=store, policy=policy or Policy()),
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


def test_our_own_endpoints_port_is_not_taken(
    tmp_path: Path, store: LocalStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        deploy = Deploy(port=holder.getsockname()[1])
        endpoint = Endpoint(
            name="tiny",
            model_name="tiny",
            artifact=ModelArtifact(digest="0" * 64, kind="w4a16", path=tmp_path),
            engine=REFERENCE,
            options=deploy,
            since=datetime.now(UTC),
        )
        endpoint.save([])
        monkeypatch.setattr(supervisor, "state", lambda _endpoint: ("RUNNING", 1))
        assert machine(place(tmp_path, deploy=deploy), Context(store)).gpus == 0
        monkeypatch.setattr(supervisor, "state", lambda _endpoint: ("STOPPED", 0))
        with pytest.raises(PreflightError, match="is taken"):
            machine(place(tmp_path, deploy=deploy), Context(store))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"engine": EngineTurbomind(name="turbomind", tp=2)},
            "engine turbomind with tp 2 needs as many CUDA GPUs, 0 are here",
        ),
        ({"engine": PYTORCH}, "engine pytorch with tp 1 needs as many CUDA GPUs, 0 are here"),
        ({"gpus": (0,)}, "GPU 0 is not here; visible: none .* -> name GPUs by their positions"),
        ({"quantize": Quantize(device="cuda")}, "no CUDA GPU here -> run on a GPU worker"),
        ({"deploy": Deploy(api_keys_env="NO_SUCH_KEYS")}, "NO_SUCH_KEYS is empty -> export"),
        ({"store": "/dev/null/home"}, "cannot be written"),
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
    engine = EngineTransformers(name="transformers", session_len=8192)
    assert (
        estimate(demand(10**8, tmp_path, evaluate=large, engine=engine)).host_bytes
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
    small: dict[str, Any] = {
        "quantize": Quantize(samples=4, sequence_length=64),
        "engine": TURBOMIND,
    }
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
