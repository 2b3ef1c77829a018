"""Evaluation, smoke test and verdict: the figures are right, and what is broken is seen."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts.evidence import DocumentScore, Evidence, SampleAnswer
from artifacts.manifest import ModelArtifact
from artifacts.store import LocalStore
from configs.errors import SmokeTestFailed
from configs.schema import Evaluate, LocalSource, PythonDocs, SmokeTest, Texts
from tasks.download import DownloadRequest, download
from tasks.engines.base import Generation
from tasks.engines.reference import ReferenceEngine
from tasks.evaluate import PROBES, EvaluateRequest, compare, evaluate, read_evidence
from tasks.smoke_test import SmokeTestRequest, endless_repetition, smoke_test, unwell
from tasks.step import Context
from tasks.texts import TextsRequest, texts
from tasks.verdict import judge

DIGEST = "0" * 64


def test_figures_of_a_known_case() -> None:
    """Two positions, two words: parent (1/2, 1/2) then (3/4, 1/4); candidate (1/4, 3/4) twice; targets 0 and 0."""
    parent = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    candidate = torch.tensor([[0.25, 0.75], [0.25, 0.75]]).log()
    score = compare(parent, candidate, torch.tensor([0, 0]))
    assert score.nll_parent == pytest.approx(-math.log(0.5) - math.log(0.75))
    assert score.nll_candidate == pytest.approx(-2 * math.log(0.25))
    kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3) + 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
    assert score.kl == pytest.approx(kl)
    assert (score.tokens, score.same_top, score.broken) == (2, 0, 0)


def test_a_position_with_nan_is_counted_and_not_averaged() -> None:
    logits = torch.zeros(3, 4)
    spoilt = logits.clone()
    spoilt[1, 2] = float("nan")
    score = compare(logits, spoilt, torch.tensor([0, 1, 2]))
    assert (score.tokens, score.broken) == (2, 1) and score.nll_candidate == pytest.approx(2 * math.log(4))


def evidence(ratio: float = 1.1, tokens: int = 1000, **more: object) -> Evidence:
    document = DocumentScore(tokens=tokens, nll_parent=2.0 * tokens, nll_candidate=(2.0 + math.log(ratio)) * tokens, kl=0.0, same_top=tokens)
    values = {"engine": "transformers", "dtype": "float32", "parent": DIGEST, "candidate": DIGEST, "texts": DIGEST, "documents": (document,),
              "samples": (SampleAnswer(prompt="p", parent="a", candidate="b"),), "same_prompts": True, "versions": {}}
    return Evidence.model_validate(values | more)


@pytest.mark.parametrize(("found", "outcome", "reason"), [
    (evidence(1.1), "PASS", "within the limit: perplexity ratio 1.1000 on 1000 tokens"),
    (evidence(1.21), "FAIL", "worse than the limit"),
    (evidence(1e4), "FAIL", "worse than the limit"),
    (evidence(1.1, tokens=100), "INCONCLUSIVE", "100 tokens are too few"),
    (evidence(1.1, same_prompts=False), "FAIL", "chat template renders other prompts"),
    (evidence(1.1, samples=(SampleAnswer(prompt="p", parent="a", candidate=""),)), "FAIL", "answers every prompt with nothing"),
    (evidence(1.1, documents=(*evidence().documents, DocumentScore(tokens=5, broken=3, nll_parent=1, nll_candidate=1, kl=0, same_top=5))),
     "FAIL", "3 positions have NaN"),
])
def test_the_verdict_and_its_reasons(found: Evidence, outcome: str, reason: str) -> None:
    verdict = judge(found, DIGEST, 1.2)
    assert verdict.outcome == outcome and reason in "; ".join(verdict.reasons)


def say(text: str, *, reason: str = "length", finite: bool = True) -> Generation:
    return Generation(text=text, tokens=9, finish_reason=reason, finite=finite, seconds=1.0)


@pytest.mark.parametrize(("answer", "problem"), [
    (say("fine words", finite=False), "NaN"),
    (say(""), "empty"),
    (say("\ufffd\ufffd\ufffd ok"), "not text"),
    (say("one two " + "and again " * 12), "repeats 'and again'"),
    (say("!" * 60), "repeats '!'"),
    (say("no no " * 3 + "maybe " + "no no " * 12), "repeats 'no'"),
])
def test_an_unwell_answer_is_recognized(answer: Generation, problem: str) -> None:
    assert problem in (unwell(answer) or "")


@pytest.mark.parametrize("text", ["Hello!", "1. Read. 2. Write. 3. Speak. 4. Listen.", "1. 1. 1. 2. 3. 4. 5. 6. 7. 8. 9. 10. 11.", "你好,我是助手。"])
def test_a_sane_answer_is_well(text: str) -> None:
    assert unwell(say(text)) is None
    assert endless_repetition(text) is None


def test_a_finished_answer_may_repeat_itself() -> None:
    assert unwell(say("ha " * 20, reason="stop")) is None


# -- with a model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    return LocalStore(tmp_path_factory.mktemp("evaluate"))


def fetch(store: LocalStore, folder: Path) -> ModelArtifact:
    return download(DownloadRequest(source=LocalSource(type="local", path=folder)), Context(store)).model


def spoil(tiny_model: Path, folder: Path, change: object) -> Path:
    """A copy of the small model with one changed tensor."""
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = change(tensors[name])  # type: ignore[operator]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_small_model_speaks(store: LocalStore, tiny_model: Path) -> None:
    result = smoke_test(SmokeTestRequest(model=fetch(store, tiny_model), config=SmokeTest()), Context(store))
    assert result.turns[0].answer == "Hello! How can I help you today?"
    assert "practice speaking" in result.turns[1].answer
    assert result.tokens_per_second > 1 and result.peak_rss_bytes > 10**8


def test_nan_weights_fail_the_smoke_test(store: LocalStore, tiny_model: Path, tmp_path: Path) -> None:
    folder = spoil(tiny_model, tmp_path / "model", lambda w: torch.full_like(w, float("nan")))
    with pytest.raises(SmokeTestFailed, match="NaN or infinite"):
        smoke_test(SmokeTestRequest(model=fetch(store, folder), config=SmokeTest()), Context(store))


def measure(store: LocalStore, parent: ModelArtifact, candidate: ModelArtifact, batch_size: int = 4) -> ModelArtifact:
    split = texts(TextsRequest(config=Texts(source=PythonDocs(type="python_docs"))), Context(store)).texts
    config = Evaluate(max_perplexity_ratio=1.1, documents=6, max_tokens_per_document=100, batch_size=batch_size, max_new_tokens=12)
    return evaluate(EvaluateRequest(parent=parent, candidate=candidate, texts=split, config=config), Context(store)).evidence


def test_a_model_against_itself_has_ratio_one_and_no_divergence(store: LocalStore, tiny_model: Path) -> None:
    model = fetch(store, tiny_model)
    found = read_evidence(measure(store, model, model))
    assert found.perplexity_ratio == 1.0 and found.mean_kl == pytest.approx(0, abs=1e-9) and found.top1_agreement == 1.0
    assert len(found.documents) == 6 and found.same_prompts


def test_the_batch_size_does_not_change_the_figures(store: LocalStore, tiny_model: Path) -> None:
    model = fetch(store, tiny_model)
    one, four = (read_evidence(measure(store, model, model, batch_size=size)) for size in (1, 4))
    assert one.nll_parent == pytest.approx(four.nll_parent, abs=1e-5)


def test_perplexity_agrees_with_the_engines_own_scores(store: LocalStore, tiny_model: Path) -> None:
    import json

    model = fetch(store, tiny_model)
    artifact = measure(store, model, model)
    engine = ReferenceEngine(model.path)
    for probe in json.loads((artifact.path / PROBES).read_text()):
        assert engine.score([probe["ids"]])[0].mean() == pytest.approx(probe["nll"], abs=1e-5)


def test_damage_is_seen_and_judged(store: LocalStore, tiny_model: Path, tmp_path: Path) -> None:
    model = fetch(store, tiny_model)
    worse = fetch(store, spoil(tiny_model, tmp_path / "model", lambda w: torch.zeros_like(w)))
    found = read_evidence(measure(store, model, worse))
    assert found.perplexity_ratio > 1.1 and found.mean_kl > 0.05 and found.top1_agreement < 0.95
    assert judge(found, DIGEST, 1.1).outcome == "FAIL"


def test_a_candidate_of_nan_is_judged_and_not_averaged(store: LocalStore, tiny_model: Path, tmp_path: Path) -> None:
    broken = fetch(store, spoil(tiny_model, tmp_path / "model", lambda w: torch.full_like(w, float("inf"))))
    found = read_evidence(measure(store, fetch(store, tiny_model), broken))
    assert found.broken > 100 and judge(found, DIGEST, 1.1).outcome == "FAIL"


def test_only_what_decides_the_figures_is_in_the_key(store: LocalStore, tiny_model: Path) -> None:
    model = fetch(store, tiny_model)

    def key(**config: object) -> str:
        values = Evaluate.model_validate({"max_perplexity_ratio": 1.1} | config)
        return evaluate.cache_key(EvaluateRequest(parent=model, candidate=model, texts=model, config=values))

    assert key() == key(max_perplexity_ratio=1.5) == key(timeout_minutes=3) != key(documents=3)
