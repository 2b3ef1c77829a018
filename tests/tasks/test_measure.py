"""The measure step and what evaluate makes of it: figures that torch alone gives as well, on one
set of token ids, and a key that has all that decides them."""

# covers artifacts/records/measurement.py
# covers tasks/engines/documents.py
# covers tasks/engines/scoring.py

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from artifacts.manifest import ModelArtifact, canonical_json
from artifacts.records.evidence import PROBES, read_evidence
from artifacts.records.measurement import Measurement, read_measurement, read_scores
from artifacts.records.texts import HELD_OUT, read_documents
from artifacts.store.local import LocalStore
from configs.engines import EngineTransformers
from configs.errors import SourceError
from configs.evaluation import Benchmark, Evaluate
from configs.texts import PythonDocs, Texts
from configs.variants import Variant
from tasks.engines.documents import held_out_ids
from tasks.engines.reference import ReferenceEngine
from tasks.engines.scoring import KEPT, scores
from tasks.evaluate import EvaluateRequest, evaluate
from tasks.measure import ItemsFile, MeasureRequest, hardware, measure
from tasks.quality.divergence import kl_divergence
from tasks.quality.verdict import judge
from tasks.runner import runtime_probe, runtimes
from tasks.runner.step import Context
from tasks.texts import TextsRequest, texts
from tests.support.interpreters import another_python
from tests.support.models import fetch

Logits = npt.NDArray[np.float64]

CONFIG = Evaluate(
    max_perplexity_ratio=1.2,
    documents=6,
    max_documents=6,
    max_tokens_per_document=60,
    batch_size=4,
    max_new_tokens=16,
    probes=1,
    probe_tokens=16,
)
BENCHMARK = Benchmark(batch_sizes=(1, 3), prompt_tokens=8, new_tokens=4, rounds=3)
HARDWARE = {"processor": "a test's"}
DIGEST = "0" * 64


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    return LocalStore(tmp_path_factory.mktemp("measure"))


@pytest.fixture(scope="module")
def split(store: LocalStore) -> ModelArtifact:
    return texts(
        TextsRequest(config=Texts(source=PythonDocs(type="python_docs"))), Context(store)
    ).texts


@pytest.fixture(scope="module")
def model(store: LocalStore, tiny_model: Path) -> ModelArtifact:
    return fetch(store, tiny_model)


def request(
    model: ModelArtifact,
    split: ModelArtifact,
    *,
    variant: Variant = "fp16",
    config: Evaluate = CONFIG,
    benchmark: Benchmark | None = None,
    baseline: ModelArtifact | None = None,
) -> MeasureRequest:
    return MeasureRequest(
        variant=variant,
        model=model,
        texts=split,
        engine=EngineTransformers(name="transformers"),
        config=config,
        benchmark=benchmark,
        part=(0, config.documents),
        baseline=baseline,
        hardware=HARDWARE,
    )


@pytest.fixture(scope="module")
def baseline(store: LocalStore, model: ModelArtifact, split: ModelArtifact) -> ModelArtifact:
    return measure(request(model, split, benchmark=BENCHMARK), Context(store)).measurement


@pytest.fixture(scope="module")
def worse(
    store: LocalStore, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> ModelArtifact:
    """A candidate with noise in its weights, and a tokenizer that sees no capitals."""
    folder = tmp_path_factory.mktemp("worse") / "model"
    shutil.copytree(tiny_model, folder)
    tensors, rng = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "mlp" in name:
            tensors[name] = (
                tensor
                + (0.3 * tensor.float().std() * torch.randn(tensor.shape, generator=rng)).half()
            )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(
        json.dumps(tokenizer | {"normalizer": {"type": "Lowercase"}})
    )
    return fetch(store, folder)


@pytest.fixture(scope="module")
def candidate(
    store: LocalStore, worse: ModelArtifact, split: ModelArtifact, baseline: ModelArtifact
) -> ModelArtifact:
    """Its measurement; it is asked for more and longer documents than the baseline has scored."""
    config = CONFIG.model_copy(update={"documents": 9, "max_tokens_per_document": 100})
    return measure(
        request(worse, split, variant="w4a16", config=config, baseline=baseline), Context(store)
    ).measurement


@pytest.fixture(scope="module")
def evidence(
    store: LocalStore, baseline: ModelArtifact, candidate: ModelArtifact, split: ModelArtifact
) -> ModelArtifact:
    return evaluate(
        EvaluateRequest(parents=(baseline,), candidates=(candidate,), texts=split), Context(store)
    ).evidence


def plain_logits(folder: Path, ids: list[int]) -> Logits:
    """Full log-probabilities float64[n - 1, vocabulary], without any code of this project."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return np.asarray(
            model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1).numpy()
        )


# -- the baseline


def test_the_first_held_out_documents_are_scored_longest_first(
    baseline: ModelArtifact, split: ModelArtifact, tiny_model: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    expected = [
        tokenizer(record["text"]).input_ids[:60]
        for record in read_documents(split.path / HELD_OUT)[:6]
    ]
    sequences, found = read_scores(baseline)
    assert sorted(sequences) == sorted(expected) and [len(ids) for ids in sequences] == sorted(
        map(len, expected), reverse=True
    )
    assert [len(score.nll) for score in found] == [len(ids) - 1 for ids in sequences]


def test_the_nll_is_what_torch_says(baseline: ModelArtifact, tiny_model: Path) -> None:
    sequences, found = read_scores(baseline)
    for ids, score in zip(sequences, found, strict=True):
        full = plain_logits(tiny_model, ids)
        assert score.nll == pytest.approx(-full[np.arange(len(ids) - 1), ids[1:]], abs=1e-4)
        assert np.array_equal(score.top, full.argmax(-1))
        assert score.logprobs == pytest.approx(np.sort(full)[:, ::-1][:, :KEPT], abs=1e-4), (
            "those of the likeliest tokens, in order"
        )
        assert score.logprobs == pytest.approx(
            np.take_along_axis(full, score.ids.astype(int), 1), abs=1e-4
        )


def test_the_record_says_what_was_measured(
    baseline: ModelArtifact, model: ModelArtifact, split: ModelArtifact
) -> None:
    record = read_measurement(baseline)
    assert (record.variant, record.engine, record.runtime) == ("fp16", "transformers", "default")
    assert (record.model, record.texts) == (model.digest, split.digest)
    assert record.hardware == HARDWARE and record.gpu_bytes is None and record.load_seconds > 0
    assert [answer.prompt for answer in record.answers] == list(CONFIG.prompts)
    assert (
        record.answers[0].text.startswith("Hello! How can I")
        and max(answer.tokens for answer in record.answers) <= 16
    )
    assert read_measurement(baseline) == Measurement.model_validate_json(
        canonical_json(record.model_dump(mode="json"))
    )


def test_each_round_of_the_benchmark_has_its_figure(
    baseline: ModelArtifact, candidate: ModelArtifact
) -> None:
    speeds = read_measurement(baseline).speeds
    assert [(speed.batch_size, speed.prompt_tokens, speed.new_tokens) for speed in speeds] == [
        (1, 8, 4),
        (3, 8, 4),
    ]
    assert all(
        len(figures) == 3 and min(figures) > 0
        for speed in speeds
        for figures in (speed.prefill, speed.decode)
    )
    assert read_measurement(candidate).speeds == (), "not asked for"


def test_the_machines_state_is_stored_with_what_was_timed(
    baseline: ModelArtifact, candidate: ModelArtifact
) -> None:
    state = read_measurement(baseline).environment
    assert (
        state is not None
        and state.fingerprint
        and state.engine.keys() >= {"torch", "transformers"}
        and 0 < (state.cpu_share or 0) <= 1
    )
    assert read_measurement(candidate).environment is None


def test_text_without_two_tokens_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / HELD_OUT).write_text('{"text": "a"}\n')
    short = ModelArtifact(digest=DIGEST, kind="texts", path=tmp_path)
    with pytest.raises(SourceError, match="of the held-out documents 1 to 3 none has two tokens"):
        held_out_ids(ReferenceEngine(tiny_model), short, (0, 3), 60)


# -- a candidate beside it


def test_a_candidate_scores_the_baselines_token_ids_at_the_baselines_tokens(
    baseline: ModelArtifact, candidate: ModelArtifact, worse: ModelArtifact
) -> None:
    ours, left = read_scores(baseline)
    theirs, right = read_scores(candidate)
    assert theirs == ours
    own = AutoTokenizer.from_pretrained(worse.path)
    assert own.decode(ours[0]) != own.decode(own(own.decode(ours[0])).input_ids), (
        "its own tokenizer would give others"
    )
    for one, other in zip(left, right, strict=True):
        assert np.array_equal(one.ids, other.ids)


def test_the_evidence_has_the_sums_of_the_scores(
    baseline: ModelArtifact,
    candidate: ModelArtifact,
    evidence: ModelArtifact,
    store: LocalStore,
    model: ModelArtifact,
    worse: ModelArtifact,
    split: ModelArtifact,
    tiny_model: Path,
) -> None:
    found = read_evidence(evidence)
    sequences, _ = read_scores(baseline)
    assert (found.variant, found.parent, found.candidate, found.texts) == (
        "w4a16",
        model.digest,
        worse.digest,
        split.digest,
    )
    for ids, document in zip(sequences, found.documents, strict=True):
        left, right = plain_logits(tiny_model, ids), plain_logits(worse.path, ids)
        targets = np.arange(len(ids) - 1), ids[1:]
        exact = (np.exp(left) * (left - right)).sum()
        assert (document.tokens, document.broken) == (len(ids) - 1, 0)
        assert document.nll_parent == pytest.approx(-left[targets].sum(), abs=1e-2)
        assert document.nll_candidate == pytest.approx(-right[targets].sum(), abs=1e-2)
        assert 0.8 * exact < document.kl < exact
        assert document.same_top == (left.argmax(-1) == right.argmax(-1)).sum()
    assert found.perplexity_ratio > 1.001
    assert not found.same_prompts, "the candidate's tokenizer sees no capitals"
    assert {parent.role: parent.digest for parent in store.manifest(evidence.digest).parents} == {
        "candidate": worse.digest,
        "parent": model.digest,
        "texts": split.digest,
        "measurement": candidate.digest,
        "baseline": baseline.digest,
    }


def test_a_candidate_of_nan_is_judged_and_not_averaged(
    store: LocalStore,
    tiny_model: Path,
    split: ModelArtifact,
    baseline: ModelArtifact,
    tmp_path: Path,
) -> None:
    shutil.copytree(tiny_model, tmp_path / "nan")
    tensors = load_file(tmp_path / "nan/model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"].fill_(float("nan"))
    save_file(tensors, tmp_path / "nan/model.safetensors", metadata={"format": "pt"})
    broken = measure(
        request(fetch(store, tmp_path / "nan"), split, variant="w4a16", baseline=baseline),
        Context(store),
    ).measurement
    artifact = evaluate(
        EvaluateRequest(parents=(baseline,), candidates=(broken,), texts=split), Context(store)
    ).evidence
    found = read_evidence(artifact)
    assert (found.tokens, found.broken) == (
        0,
        sum(len(ids) - 1 for ids in read_scores(baseline)[0]),
    )
    assert (
        judge(found, artifact.digest, CONFIG).outcome == "FAIL"
        and json.loads((artifact.path / PROBES).read_text()) == []
    )


# -- how close the divergence of the kept tokens is to that of the whole vocabulary


def divergences(parent: Any, candidate: Any, ids: list[int]) -> tuple[Logits, Logits, Logits]:
    """Per position: the coarse KL divergence, the exact one, and the probability that the parent
    gives to the kept tokens."""
    with torch.inference_mode():
        left, right = (
            model(input_ids=torch.tensor([ids])).logits[0] for model in (parent, candidate)
        )
    one = scores(left, ids)
    coarse = kl_divergence(one, scores(right, ids, one.ids))
    full = [logits[:-1].double().log_softmax(-1).numpy() for logits in (left, right)]
    return (
        coarse,
        (np.exp(full[0]) * (full[0] - full[1])).sum(-1),
        np.exp(one.logprobs.astype(np.float64)).sum(-1),
    )


def noisy(model: Any, share: float) -> Any:
    """The model with noise in the matrices of its layers, as a share of their spread."""
    import copy

    torch.manual_seed(0)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if ".layers." in name and tensor.ndim == 2:
                tensor.add_(share * tensor.std() * torch.randn_like(tensor))
    return model


@pytest.mark.parametrize("share", [0.02, 0.2, 1.0])
def test_the_coarse_divergence_is_a_close_lower_bound_of_the_exact_one(
    tiny_model: Path, baseline: ModelArtifact, share: float
) -> None:
    """On a trained model nine tenths of the exact figure: about what the kept tokens have of the
    probability."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    parts = [divergences(model, noisy(model, share), ids) for ids in read_scores(baseline)[0]]
    coarse, exact, mass = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert (coarse <= exact + 2e-5).all() and (coarse >= 0).all()
    assert 0.85 < coarse.mean() / exact.mean() < 1.0 and 0.8 < mass.mean() < 1.0


def test_where_nothing_is_likely_it_is_a_lower_bound_and_no_more() -> None:
    """The worst case, weights of pure chance: the kept eighth of the vocabulary has a fifth of the
    probability."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1024,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=64,
        )
    ).eval()
    coarse, exact, mass = divergences(model, noisy(model, 1.0), list(range(100, 200)))
    assert (
        (coarse <= exact + 2e-5).all()
        and 0.1 < coarse.mean() / exact.mean() < 0.5
        and mass.mean() < 0.3
    )


def test_with_the_whole_vocabulary_kept_it_is_exact() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(40, 100), torch.randn(40, 100)
    ids = [0] * 41
    one = scores(left, ids)
    full = [logits.double().log_softmax(-1).numpy() for logits in (left, right)]
    assert one.ids.shape == (40, 100)
    assert kl_divergence(one, scores(right, ids, one.ids)) == pytest.approx(
        (np.exp(full[0]) * (full[0] - full[1])).sum(-1), abs=1e-5
    )


# -- what the key of the cache has


def test_the_key_has_what_decides_the_figures_and_no_limit(
    model: ModelArtifact, split: ModelArtifact, tmp_path: Path
) -> None:
    base = request(model, split, benchmark=BENCHMARK)

    def key(**changes: Any) -> str:
        return measure.cache_key(base.model_copy(update=changes))

    def asked(**changes: Any) -> str:
        return key(config=CONFIG.model_copy(update=changes))

    assert (
        key()
        == asked(max_perplexity_ratio=1.5)
        == asked(timeout_minutes=3.0)
        == asked(confidence=0.9)
        == asked(max_parent_perplexity=9.0)
    )
    assert (
        key()
        == asked(documents=3)
        == asked(max_documents=9)
        == asked(tasks=(tmp_path,))
        == key(model=model.model_copy(update={"path": tmp_path}))
    )
    assert key(items=(ItemsFile(path=tmp_path, sha256="1"),)) == key(
        items=(ItemsFile(path=tmp_path / "moved", sha256="1"),)
    )
    others = [
        key(hardware={"processor": "another"}),
        key(variant="w4a16"),
        key(variant="w4a16-kv8"),
        key(variant="w4a16-kv4"),
        key(baseline=model),
        key(texts=model),
        key(model=split),
        key(benchmark=None),
        key(benchmark=BENCHMARK.model_copy(update={"rounds": 4})),
        key(engine=EngineTransformers(name="transformers", session_len=128)),
        key(part=(0, 3)),
        key(part=(3, 6)),
        key(items=(ItemsFile(path=tmp_path, sha256="1"),)),
        asked(probes=2),
        asked(probe_tokens=17),
        asked(max_tokens_per_document=61),
        asked(batch_size=1),
        asked(prompts=("hello",)),
        asked(max_new_tokens=9),
    ]
    assert len({key(), *others}) == len(others) + 1, "each is another measurement"


def test_the_key_follows_what_is_installed_in_the_runtime(
    model: ModelArtifact,
    split: ModelArtifact,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # importing torch to adopt it takes seconds, and is not what this is about
    monkeypatch.setattr(runtime_probe, "NEEDS", ())
    python = another_python(tmp_path / "elsewhere")
    runtimes.adopt("elsewhere", python)
    elsewhere = request(model, split).model_copy(
        update={"engine": EngineTransformers(name="transformers", runtime="elsewhere")}
    )
    before = measure.cache_key(elsewhere)
    assert before == measure.cache_key(elsewhere) != measure.cache_key(request(model, split))
    [packages] = python.parents[1].glob("lib/python3*/site-packages")
    (packages / "torch-99.0.dist-info").mkdir()
    (packages / "torch-99.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n"
    )
    assert measure.cache_key(elsewhere) != before


def test_hardware_without_a_gpu_is_the_processor() -> None:
    assert hardware([]).keys() == {"processor", "cores"} and all(hardware([]).values())
