"""Comparison and verdict: documents are paired, and what is broken is seen.
`test_measure` has what is measured."""

# covers artifacts/records/evidence.py
# covers artifacts/records/record.py

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from artifacts.manifest import ModelArtifact
from artifacts.records.evidence import PROBES, Probe, SampleAnswer, read_evidence
from artifacts.records.measurement import (
    read_scores,
)
from artifacts.store.local import LocalStore
from configs.engines import EngineTransformers
from configs.errors import SourceError
from configs.evaluation import Evaluate
from configs.texts import PythonDocs, Texts
from tasks.engines.reference import ReferenceEngine
from tasks.measure import MeasureRequest, measure
from tasks.quality.verdict import judge
from tasks.runner.step import Context
from tasks.texts import TextsRequest, texts
from tests.support.measurements import DIGEST, compared, planted, planted_texts
from tests.support.models import fetch, spoil

CONFIG = Evaluate(
    max_perplexity_ratio=1.1,
    documents=24,
    max_documents=24,
    max_tokens_per_document=100,
    max_new_tokens=12,
)


# -- the evidence of planted scores


def probes(artifact: ModelArtifact) -> list[Probe]:
    return [Probe.model_validate(item) for item in json.loads((artifact.path / PROBES).read_text())]


@pytest.mark.parametrize(
    ("lengths", "nan_in", "expected"),
    [
        ([9, 7, 5], (), [9, 5]),
        ([9, 7, 5, 2], (0, 3), [7, 5]),
        ([9, 7, 5], (0, 1), [5]),
        ([9], (), [9]),
        ([9, 7], (0, 1), []),
    ],
)
def test_probes_are_the_longest_and_the_shortest_of_the_documents_that_have_every_score(
    store: LocalStore, lengths: list[int], nan_in: tuple[int, ...], expected: list[int]
) -> None:
    artifact = compared(store, [planted(store, lengths)], [planted(store, lengths, nan_in=nan_in)])
    assert [len(probe.ids) for probe in probes(artifact)] == expected
    assert all(probe.nll == pytest.approx(math.log(64)) for probe in probes(artifact))
    assert read_evidence(artifact).broken == len(nan_in)


def test_prompts_and_answers_are_set_beside_each_other(store: LocalStore) -> None:
    parent, other = (
        planted(store, [9], ids=(1, 2), text="from the parent"),
        planted(store, [9], ids=(1, 3), text="from the candidate"),
    )
    found = read_evidence(compared(store, [parent], [other]))
    assert (found.same_prompts, found.samples) == (
        False,
        (SampleAnswer(prompt="hello", parent="from the parent", candidate="from the candidate"),),
    )


def test_documents_are_paired_by_what_they_are_and_not_by_their_place(store: LocalStore) -> None:
    found = read_evidence(compared(store, [planted(store, [9, 7, 5])], [planted(store, [5, 9, 3])]))
    assert ([document.tokens for document in found.documents], found.unpaired) == ([8, 4], (1, 1))


def test_a_second_look_adds_its_documents(store: LocalStore) -> None:
    found = read_evidence(
        compared(
            store,
            [planted(store, [9, 7]), planted(store, [6])],
            [planted(store, [9, 7]), planted(store, [6])],
        )
    )
    assert (found.tokens, found.looks, found.unpaired) == (19, 2, (0, 0))


def test_models_that_have_no_document_in_common_cannot_be_compared(store: LocalStore) -> None:
    with pytest.raises(SourceError, match="has scored other token ids than its parent"):
        compared(store, [planted(store, [9])], [planted(store, [8])])


def test_held_out_text_that_was_calibrated_with_is_counted(store: LocalStore) -> None:
    passage = "one two three four five six seven eight nine ten eleven twelve thirteen"
    split = planted_texts(store, f"It begins. {passage}. It ends.", f"Something else, {passage}!")
    assert (
        read_evidence(compared(store, [planted(store, [9])], [planted(store, [9])], split)).overlap
        == 1
    )
    assert read_evidence(compared(store, [planted(store, [9])], [planted(store, [9])])).overlap == 0


# -- with a model


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    return LocalStore(tmp_path_factory.mktemp("evaluate"))


# -- measured and compared


def split_of(store: LocalStore) -> ModelArtifact:
    return texts(
        TextsRequest(config=Texts(source=PythonDocs(type="python_docs"))), Context(store)
    ).texts


def measured(
    store: LocalStore,
    model: ModelArtifact,
    baseline: ModelArtifact | None = None,
    *,
    batch_size: int = 4,
) -> ModelArtifact:
    """A measurement by the step itself: the baseline's, or a candidate's beside it."""
    return measure(
        MeasureRequest(
            variant="w4a16" if baseline else "fp16",
            model=model,
            texts=split_of(store),
            engine=EngineTransformers(name="transformers"),
            config=CONFIG.model_copy(update={"batch_size": batch_size}),
            benchmark=None,
            part=(0, CONFIG.documents),
            baseline=baseline,
            hardware={},
        ),
        Context(store, store.root / "events.jsonl"),
    ).measurement


def beside(store: LocalStore, baseline: ModelArtifact, candidate: ModelArtifact) -> ModelArtifact:
    """The evidence about a candidate."""
    return compared(store, [baseline], [measured(store, candidate, baseline)], split_of(store))


@pytest.fixture(scope="module")
def baseline(store: LocalStore, tiny_model: Path) -> ModelArtifact:
    """The small model's own measurement."""
    return measured(store, fetch(store, tiny_model))


@pytest.fixture(scope="module")
def itself(store: LocalStore, tiny_model: Path, baseline: ModelArtifact) -> ModelArtifact:
    """The evidence about the small model as its own candidate."""
    return beside(store, baseline, fetch(store, tiny_model))


def test_a_model_against_itself_has_ratio_one_and_no_divergence(itself: ModelArtifact) -> None:
    found = read_evidence(itself)
    assert (
        found.perplexity_ratio == 1.0
        and found.kl.mean == pytest.approx(0, abs=1e-9)
        and found.top1_agreement == 1.0
    )
    assert len(found.documents) == 24 and found.same_prompts and found.tokens > 200
    assert [sample.candidate for sample in found.samples] == [
        sample.parent for sample in found.samples
    ]
    assert judge(found, DIGEST, CONFIG).outcome == "PASS"


def test_the_evidence_names_what_it_rests_on(
    store: LocalStore, tiny_model: Path, baseline: ModelArtifact, itself: ModelArtifact
) -> None:
    found, manifest, model = (
        read_evidence(itself),
        store.manifest(itself.digest),
        fetch(store, tiny_model).digest,
    )
    assert (found.variant, found.engine, found.runtime, found.parent, found.candidate) == (
        "w4a16",
        "transformers",
        "default",
        model,
        model,
    )
    assert found.versions.keys() == {"python", "torch", "transformers"}
    assert {parent.role for parent in manifest.parents} == {
        "candidate",
        "parent",
        "texts",
        "measurement",
        "baseline",
    }
    assert (
        manifest.parent("candidate"),
        manifest.parent("parent"),
        manifest.parent("baseline"),
    ) == (model, model, baseline.digest)
    assert store.manifest(manifest.parent("measurement")).kind == "measurement"


def test_the_batch_size_does_not_change_the_figures(
    store: LocalStore, tiny_model: Path, baseline: ModelArtifact
) -> None:
    one = measured(store, fetch(store, tiny_model), batch_size=1)
    for left, right in zip(read_scores(one)[1], read_scores(baseline)[1], strict=True):
        assert left.nll == pytest.approx(right.nll, abs=1e-5)


def test_probes_are_the_longest_and_the_shortest_document_and_the_engines_own_scores(
    store: LocalStore, tiny_model: Path, baseline: ModelArtifact, itself: ModelArtifact
) -> None:
    sequences, engine = read_scores(baseline)[0], ReferenceEngine(tiny_model)
    longest, shortest = probes(itself)
    assert (
        list(longest.ids) == max(sequences, key=len)
        and list(shortest.ids) == min(sequences, key=len)
        and len(shortest.ids) < len(longest.ids)
    )
    for probe in (longest, shortest):
        assert engine.score([list(probe.ids)])[0].nll.mean() == pytest.approx(probe.nll, abs=1e-5)


def test_damage_is_seen_and_judged(
    store: LocalStore, tiny_model: Path, baseline: ModelArtifact, tmp_path: Path
) -> None:
    worse = fetch(store, spoil(tiny_model, tmp_path / "model", lambda w: torch.zeros_like(w)))
    found = read_evidence(beside(store, baseline, worse))
    assert found.perplexity_ratio > 1.1 and found.kl.mean > 0.05 and found.top1_agreement < 0.95
    assert judge(found, DIGEST, CONFIG).outcome == "FAIL"


def test_another_chat_template_is_seen_and_judged(
    store: LocalStore, tiny_model: Path, baseline: ModelArtifact, tmp_path: Path
) -> None:
    """Weights and scores are the same; only what the template makes of a prompt is not."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    template = folder / "chat_template.jinja"
    template.write_text(
        template.read_text().replace("<|im_start|>assistant", "<|im_start|>Assistant")
    )
    found = read_evidence(beside(store, baseline, fetch(store, folder)))
    assert (found.perplexity_ratio, found.same_prompts) == (1.0, False)
    verdict = judge(found, DIGEST, CONFIG)
    assert verdict.outcome == "FAIL" and "chat template" in verdict.reasons[0]
