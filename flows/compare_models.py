"""Two models side by side, whatever they are: the second one judged as a candidate beside the first
one, with a report of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from pydantic import BaseModel, ConfigDict

from artifacts.manifest import ModelArtifact
from artifacts.records.report import Verdict
from configs.errors import ConfigError
from configs.reader import load
from configs.schema import Pipeline
from configs.sources import LocalSource
from flows.evaluation import Baseline, Candidate, Evaluation
from flows.run.lookup import resolve, variant_of
from flows.run.plan import find_config
from flows.run.publish import publish_report
from flows.run.run import Run, begin_run
from tasks.download import DownloadRequest, download
from tasks.machine.gpus import choose_visible
from tasks.measure import items_files
from tasks.report import ReportRequest, report
from tasks.texts import TextsRequest, texts


class Compared(BaseModel):
    """What a comparison has led to."""

    model_config = ConfigDict(frozen=True)

    name: str
    verdict: Verdict
    report: ModelArtifact
    variants: tuple[dict[str, str], ...]


@flow(name="compare-models", flow_run_name="{first} and {second}", persist_result=False)
def compare_models(
    first: str,
    second: str,
    config: str = "configs/demo.yaml",
    kv: str = "",
    overrides: dict[str, Any] | None = None,
) -> Compared:
    """Measure two models on the same text through the same engine, and judge the second one beside
    the first.

    Args:
        first: the baseline: an artifact's digest, its first digits, or a folder with an unquantized
            model.
        second: the candidate, named in the same way.
        config: a pipeline's YAML file, for its texts, evaluate, engine, benchmark and load
            sections.
        kv: the KV cache of both: -kv8, -kv4, or empty.
        overrides: values that replace the file's, by dotted key path.
    """
    path = find_config(config)
    pipeline = load(path, overrides)
    items = items_files(pipeline.evaluate.tasks)
    run = begin_run("compare", choose_visible(pipeline.gpus, pipeline.engine.tp))
    split = run(texts, TextsRequest(config=pipeline.texts)).texts
    parent, model = (model_artifact(run, pipeline, name) for name in (first, second))
    if parent.digest == model.digest:
        raise ConfigError(
            "both are the same artifact",
            where=f"compare {first} {second}",
            hint="`lmflows ls` shows what there is",
        )
    variants = [variant_of(f"{item.kind}{kv}", pipeline.engine) for item in (parent, model)]
    baseline = Baseline(parent, split, items, variants[0])
    candidate = Candidate(model, run.store.manifest(model.digest).size, model.short)
    evaluation = Evaluation(run, pipeline, baseline, pipeline.evaluate)
    outcomes = (evaluation.parent(), evaluation.judge(variants[1], candidate))
    report_request = ReportRequest(
        name=f"{parent.short} and {model.short}",
        served=variants[1],
        variants=evaluation.load_tests(outcomes),
        config=pipeline.evaluate,
        steps=run.times,
    )
    judged = run(report, report_request)
    publish_report(run, report_request.name, judged)
    return Compared(
        name=report_request.name,
        verdict=judged.verdict,
        report=judged.report,
        variants=judged.variants,
    )


def model_artifact(run: Run, pipeline: Pipeline, name: str) -> ModelArtifact:
    """A model as an artifact of the workspace, where the steps look for it.

    Raises:
        ArtifactMissing: no artifact, or several, have a digest that starts so.
        ConfigError: it is something else than a model.
    """
    if Path(name).is_dir():
        source = LocalSource(
            type="local",
            path=Path(name).absolute(),
            trusted_code=getattr(pipeline.source, "trusted_code", {}),
        )
        return run(download, DownloadRequest(source=source), label=Path(name).name).model
    store, digest = resolve(name)
    if store.manifest(digest).kind not in ("fp16", "w4a16"):
        raise ConfigError(
            f"{digest[:12]} is no model but of kind {store.manifest(digest).kind}",
            where=f"compare {name}",
            hint="`lmflows ls` shows what there is",
        )
    if store.root != run.store.root:
        run.store.push(store, digest)
    return run.store.open(digest)
