"""The variants of a run, where an engine fails for some: real steps in real children, real engine
processes, a real Prefect.

LMDeploy's engines need a GPU and only they have more than one variant, so a runtime has the
reference engine in their place (`tests.support.planted_runtime`). There it aborts with an int8 KV
cache, and refuses an int4 one. The flows run in a process of their own (`main`), so that no worker
of Prefect stays behind in this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from artifacts.manifest import ModelArtifact
from artifacts.records.measurement import read_scores
from artifacts.records.model import ModelSummary, SmokeTestRecord
from artifacts.records.outcomes import StepTime, VariantOutcome
from artifacts.store.local import LocalStore
from configs import paths
from configs.errors import LmflowsError
from configs.schema import Pipeline
from configs.sources import LocalSource
from configs.texts import PythonDocs, Texts
from configs.variants import Variant
from tasks.download import DownloadRequest, download
from tasks.report import ReportRequest, ReportResult
from tasks.runner.step import Context
from tasks.texts import TextsRequest, texts
from tests.support import planted_runtime
from tests.support.patience import PATIENCE

FAILS = f"""
from configs.errors import EngineError
if spec.kv_bits == 4:
    raise EngineError("takes no int4 cache", where="engine turbomind", hint="take another")
{planted_runtime.ABORTS}"""
# name: (the served variant, the model's head_dim, the engine's runtime)
RUNS: dict[str, tuple[Variant, int, str]] = {
    "works": ("w4a16", 64, "planted"),
    "int8 is served": ("w4a16-kv8", 64, "planted"),
    "int4 is served": ("w4a16-kv4", 128, "planted"),
    "dead": ("w4a16", 64, "dead"),
}


class Told(BaseModel):
    """What a flow run says of itself: its end, the variants' outcomes and finished steps, the steps
    it started, and its report."""

    state: str
    error: str = ""
    outcomes: list[VariantOutcome] = []
    done: list[str] = []
    started: set[str] = set()
    report: ReportResult | None = None


def pipeline(served: str, runtime: str) -> Pipeline:
    return Pipeline.model_validate(
        {
            "name": "tiny",
            "source": {"type": "local", "path": "model"},
            "texts": {"source": {"type": "python_docs"}},
            "evaluate": {
                "max_perplexity_ratio": 1.1,
                "max_documents": 24,
                "max_tokens_per_document": 96,
                "max_new_tokens": 8,
                "prompts": ["hello"],
                "probes": 0,
            },
            "engine": {"name": "turbomind", "runtime": runtime},
            "variants": ["fp16", "w4a16-kv8", "w4a16-kv4", "w4a16"],
            "deploy": {"variant": served},
        }
    )


def story(outcomes: list[VariantOutcome]) -> ReportRequest:
    return ReportRequest(
        name="tiny",
        served="w4a16",
        variants=tuple(outcomes),
        config=pipeline("w4a16", "planted").evaluate_each_attempt,
        model=ModelSummary(
            architecture="LlamaForCausalLM",
            parameters=1,
            parent_bytes=1,
            candidate_bytes=1,
            hidden_size=1,
            head_dim=64,
            vocabulary=1,
        ),
        smoke_test=SmokeTestRecord(
            turns=(), load_seconds=1, tokens_per_second=1, peak_rss_bytes=1, dtype="float32"
        ),
        steps=(StepTime(name="measure fp16", seconds=1, peak_rss_bytes=1, peak_gpu_bytes=None),),
    )


def main(folder: Path, tiny_model: Path) -> None:
    """Make a workspace with the small model and a candidate with slightly other weights, and run
    every flow over them."""
    from flows.run import environment

    environment.prepare(quiet=True)
    from prefect import flow

    from flows.evaluation import Baseline, Candidate, Evaluation
    from flows.run.run import Run
    from tasks.report import report

    planted_runtime.adopt("planted", folder / "planted", fails="spec.kv_bits", how=FAILS)
    planted_runtime.adopt("dead", folder / "dead", fails="True")
    store = LocalStore(paths.workspace())
    model = download(
        DownloadRequest(source=LocalSource(type="local", path=tiny_model)), Context(store)
    ).model
    with store.staging() as staging:
        for path in tiny_model.iterdir():
            if path.name != "model.safetensors":
                staging.copy(path, path.name)
        tensors = load_file(tiny_model / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"] *= 0.9
        save_file(tensors, staging.path / "model.safetensors", metadata={"format": "pt"})
        candidate = store.commit(staging, "w4a16", recipe={"samples": 4})
    split = texts(
        TextsRequest(config=Texts(source=PythonDocs(type="python_docs"))), Context(store)
    ).texts

    for name, (served, head_dim, runtime) in RUNS.items():
        config = pipeline(served, runtime)
        run = Run(folder / "runs" / name, store)
        baseline = Baseline(model, split, ())
        quantized = Candidate(candidate, 10**6)
        told = Told(state="")

        @flow(name=name, persist_result=False)
        def measured() -> None:
            evaluation = Evaluation(run, config, baseline, config.evaluate_each_attempt)  # noqa: B023
            parent = evaluation.parent()
            first = evaluation.judge(served, quantized)  # noqa: B023
            outcomes = evaluation.variants(parent, first, quantized, head_dim)  # noqa: B023
            told.outcomes = list(outcomes)  # noqa: B023
            told.report = run(report, story(told.outcomes))  # noqa: B023

        state = measured(return_state=True)
        told.state = state.type.value
        try:
            state.result()
        except LmflowsError as error:
            told.error = f"{type(error).__name__}: {error.message}"
        told.done = [done.time.name for done in run.finished]
        told.started = {path.name for path in run.folder.iterdir()}
        (folder / f"{name}.json").write_text(told.model_dump_json())


@pytest.fixture(scope="module")
def runs(
    tiny_model: Path, prefect_api: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Told]:
    """What each flow run says."""
    folder = tmp_path_factory.mktemp("variants")
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")
    } | {"LMFLOWS_HOME": str(folder / "home"), "PREFECT_API_URL": prefect_api}
    done = subprocess.run(
        [sys.executable, "-m", "tests.flows.test_evaluation", str(folder), str(tiny_model)],
        cwd=paths.PROJECT,
        capture_output=True,
        text=True,
        env=environment | {"HOME": str(folder)},
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: Told.model_validate_json((folder / f"{name}.json").read_text()) for name in RUNS}


def test_a_variant_whose_engine_crashes_says_why_and_the_rest_go_on(runs: dict[str, Told]) -> None:
    works = runs["works"]
    assert (works.state, works.error) == ("COMPLETED", "")
    assert [item.variant for item in works.outcomes] == ["fp16", "w4a16-kv8", "w4a16-kv4", "w4a16"]
    baseline, crashed, _, served = works.outcomes
    assert crashed.problem is not None and crashed.problem.startswith(
        "died with signal SIGABRT while it was asked to load; its last lines:"
    )
    assert (
        "terminate called after throwing" in crashed.problem
        and crashed.measurement is crashed.evidence is None
    )
    assert baseline.problem is served.problem is None and baseline.evidence and served.evidence
    assert crashed.model == served.model != baseline.model


def test_every_variant_is_scored_on_the_baselines_text_and_at_its_likeliest_tokens(
    runs: dict[str, Told],
) -> None:
    baseline, served = (
        measurement(runs["works"].outcomes[0]),
        measurement(runs["works"].outcomes[3]),
    )
    (expected, parent), (sequences, candidate) = read_scores(baseline), read_scores(served)
    assert sequences == expected and all(
        (one.ids == other.ids).all() for one, other in zip(parent, candidate, strict=True)
    )


def measurement(outcome: VariantOutcome) -> ModelArtifact:
    assert outcome.measurement is not None
    return outcome.measurement


def test_a_variant_that_would_abort_the_engine_is_not_asked_for(runs: dict[str, Told]) -> None:
    works = runs["works"]
    assert (
        works.outcomes[2].problem
        == "KV int4 aborts TurboMind with head_dim 64 -> use KV int8 (w4a16-kv8)"
    )
    assert works.started == {"measure-fp16", "measure-w4a16-kv8", "measure-w4a16"}


def test_only_what_was_measured_is_among_the_finished_steps(runs: dict[str, Told]) -> None:
    assert runs["works"].done == [
        "measure fp16",
        "evaluate fp16",
        "measure w4a16",
        "evaluate w4a16",
        "report",
    ]


def test_the_report_has_a_row_for_each_variant_and_the_reason_in_full(
    runs: dict[str, Told],
) -> None:
    report = runs["works"].report
    assert report is not None and report.verdict.outcome == "PASS"
    rows = {row["variant"]: row for row in report.variants}
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "fp16": "baseline",
        "w4a16-kv8": "died with signal SIGABRT while it was asked to load",
        "w4a16-kv4": "KV int4 aborts TurboMind with head_dim 64 -> use KV int8 (w4a16-kv8)",
        "w4a16": "PASS",
    }
    assert float(rows["w4a16"]["perplexity"]) / float(rows["fp16"]["perplexity"]) == pytest.approx(
        float(rows["w4a16"]["ratio"].split()[0]), rel=1e-3
    )
    assert 1 < float(rows["w4a16"]["ratio"].split()[0]) < 1.1
    assert (
        rows["w4a16-kv8"]["perplexity"]
        == rows["w4a16-kv8"]["load"]
        == rows["w4a16-kv4"]["ratio"]
        == ""
    )
    assert (
        "**w4a16-kv8**: died with signal SIGABRT" in report.text
        and "terminate called after throwing" in report.text
    )
    assert len({len(row) for row in report.variants}) == 1  # a table


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("int8 is served", "EngineCrashed: died with signal SIGABRT while it was asked to load"),
        ("int4 is served", "EngineError: takes no int4 cache"),
        ("dead", "EngineCrashed: died with signal SIGABRT"),
    ],
)
def test_a_run_fails_with_the_variant_that_it_would_serve_and_with_the_baseline(
    runs: dict[str, Told], name: str, words: str
) -> None:
    told = runs[name]
    assert (told.state, told.report) == ("FAILED", None)
    assert told.error.startswith(words)


def test_after_a_failure_that_ends_the_run_nothing_more_is_measured(runs: dict[str, Told]) -> None:
    assert runs["dead"].started == {"measure-fp16"}
    # the baseline is reused, and what is served comes first
    assert runs["int8 is served"].started == {"measure-w4a16-kv8"}
    assert runs["int4 is served"].started == {"measure-w4a16-kv4"}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
