"""The main flow: a model goes in by name, a judged and served W4A16 endpoint comes out.

Read top to bottom it is the project's one sentence. Every line with `run.perform` is a Prefect task; what passes
between them is a model artifact.
"""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict

from artifacts.evidence import Evidence, Verdict
from artifacts.manifest import ModelArtifact
from artifacts.store import LocalStore
from configs import paths
from configs.errors import VerdictFailed
from configs.load import load
from configs.schema import Pipeline
from flows.steps import Done, Run, artifact_key
from tasks import endpoints, supervisor
from tasks.capacity import CapacityRequest, CapacityResult, MachineRequest, capacity, machine
from tasks.child import reap_orphans
from tasks.deploy import DeployRequest, DeployResult, deploy
from tasks.download import DownloadRequest, download
from tasks.evaluate import EvaluateRequest, evaluate, read_evidence
from tasks.pad import PadRequest, pad
from tasks.preflight import PreflightRequest, preflight
from tasks.promote import PromoteRequest, PromoteResult, promote
from tasks.quantize import QuantizeRequest, quantize
from tasks.report import ReportRequest, StepTime, markdown, report, variant_rows
from tasks.smoke_test import SmokeTestRequest, smoke_test
from tasks.texts import TextsRequest, texts
from tasks.upload import UploadRequest, upload


class Summary(BaseModel):
    """What a run has led to."""

    model_config = ConfigDict(frozen=True)

    name: str
    verdict: Verdict
    evidence: Evidence
    candidate: ModelArtifact
    report: ModelArtifact
    parent_bytes: int
    candidate_bytes: int
    needs: CapacityResult
    promoted: PromoteResult | None
    deployed: DeployResult | None
    reused: tuple[str, ...]


@flow(name="quantize-and-deploy", flow_run_name="{config}", persist_result=False)
def quantize_and_deploy(config: str = "configs/demo.yaml", overrides: dict[str, Any] | None = None) -> Summary:
    """Download, check, quantize, evaluate, judge, upload, promote and serve a model.

    Args:
        config: the pipeline's YAML file.
        overrides: values that replace the file's, by dotted key path, for example {"evaluate.documents": 8}.
    """
    pipeline = load(find_config(config), overrides)
    run = begin_run(pipeline)
    folders = (paths.workspace(), store_folder(pipeline))
    run.perform(machine, MachineRequest(quantize=pipeline.quantize, deploy=pipeline.deploy, folders=folders, port_is_ours=port_is_ours(pipeline)))
    split = run.perform(texts, TextsRequest(config=pipeline.texts), timeout_minutes=pipeline.texts.timeout_minutes)
    source = run.perform(download, DownloadRequest(source=pipeline.source), timeout_minutes=pipeline.source.timeout_minutes)
    model, trusted = source.result.model, bool(getattr(pipeline.source, "trusted_code", None))
    done: list[Done[Any]] = [split, source]
    if multiple := pipeline.source.pad_to_multiple:
        padded = run.perform(pad, PadRequest(model=model, multiple=multiple), timeout_minutes=pipeline.source.timeout_minutes)
        model = padded.result.model
        done.append(padded)

    checked = run.perform(preflight, PreflightRequest(
        model=model, texts=split.result.texts, quantize=pipeline.quantize, deploy=pipeline.deploy, trust_remote_code=trusted,
        untrusted_code=source.result.untrusted_code))
    recipe = QuantizeRequest(model=model, texts=split.result.texts, config=pipeline.quantize, trust_remote_code=trusted)
    room = run.perform(capacity, CapacityRequest(model=checked.result, quantize=pipeline.quantize, evaluate=pipeline.evaluate, folders=folders,
                                                 reused=run.has_done(quantize, recipe)))
    spoke = run.perform(smoke_test, SmokeTestRequest(model=model, config=pipeline.smoke_test, trust_remote_code=trusted),
                        timeout_minutes=pipeline.smoke_test.timeout_minutes)
    quantized = run.perform(quantize, recipe, timeout_minutes=pipeline.quantize.timeout_minutes)
    candidate = quantized.result.candidate
    evaluated = run.perform(evaluate, EvaluateRequest(parent=model, candidate=candidate, texts=split.result.texts, config=pipeline.evaluate,
                                                      trust_remote_code=trusted), timeout_minutes=pipeline.evaluate.timeout_minutes)
    done += [checked, spoke, quantized, evaluated]
    evidence = read_evidence(evaluated.result.evidence)
    story = ReportRequest(
        name=pipeline.name, parent=model, candidate=candidate, evidence=evaluated.result.evidence, model=checked.result,
        max_perplexity_ratio=pipeline.evaluate.max_perplexity_ratio, smoke_test=spoke.result, parent_bytes=quantized.result.parent_bytes,
        candidate_bytes=quantized.result.candidate_bytes,
        steps=tuple(StepTime(name=item.name, seconds=item.seconds, peak_rss_bytes=item.peak_rss_bytes) for item in done if item.kept))
    judged = run.perform(report, story)
    tell(story, evidence, judged.result.verdict)
    stored = run.perform(upload, UploadRequest(artifacts=(candidate, judged.result.report, evaluated.result.evidence), store=store_folder(pipeline)))

    promoted = deployed = None
    if judged.result.verdict.outcome == "PASS":
        in_store, report_in_store, evidence_in_store = stored.result.uploaded
        promoted = run.perform(promote, PromoteRequest(
            name=pipeline.name, stage=pipeline.promote.stage, candidate=in_store, report=report_in_store, store=store_folder(pipeline),
            who=f"{psutil.Process().username()}@{socket.gethostname()}", why=f"run {flow_run.name or flow_run.id} passed its verdict")).result
        if pipeline.deploy is not None:
            deployed = run.perform(deploy, DeployRequest(name=pipeline.name, artifact=in_store, evidence=evidence_in_store,
                                                         options=pipeline.deploy, trust_remote_code=trusted)).result
    summary = Summary(name=pipeline.name, verdict=judged.result.verdict, evidence=evidence, candidate=candidate, report=judged.result.report,
                      parent_bytes=quantized.result.parent_bytes, candidate_bytes=quantized.result.candidate_bytes, needs=room.result,
                      promoted=promoted, deployed=deployed, reused=tuple(item.name for item in done if item.reused))
    return stand_by(summary)


def find_config(config: str) -> Path:
    """The file, relative to the current folder or, for a worker that runs elsewhere, to the checkout."""
    path = Path(config)
    return path if path.exists() else paths.PROJECT / path


def begin_run(pipeline: Pipeline) -> Run:
    """A folder for the run, and nothing alive of runs that are dead."""
    reap_orphans(paths.runs())
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = paths.runs() / f"{stamp}-{pipeline.name}-{str(flow_run.id or '')[:8]}"
    folder.mkdir(parents=True)
    paths.remember_store(store_folder(pipeline))
    return Run(folder=folder, store=LocalStore(paths.workspace()))


def store_folder(pipeline: Pipeline) -> Path:
    return pipeline.upload.store or paths.default_store()


def port_is_ours(pipeline: Pipeline) -> bool:
    """Whether the wanted port is held by the endpoint that this run will replace."""
    known = endpoints.read(pipeline.name)
    return (known is not None and pipeline.deploy is not None and known.options.port == pipeline.deploy.port
            and supervisor.state(known)[0] in ("RUNNING", "STARTING"))


def tell(story: ReportRequest, evidence: Evidence, verdict: Verdict) -> None:
    """The run's story and its table of variants, for the Prefect UI."""
    recipe = LocalStore(paths.workspace()).manifest(story.candidate.digest).recipe
    create_markdown_artifact(markdown(story, evidence, verdict, recipe), key=artifact_key(f"report {story.name}"),
                             description=f"{story.name}: {verdict.outcome}")
    create_table_artifact(variant_rows(story, evidence), key=artifact_key(f"variants {story.name}"), description="fp16 against w4a16")


def stand_by(summary: Summary) -> Summary:
    """A run whose verdict is not PASS has failed, with everything kept for inspection."""
    if summary.verdict.outcome != "PASS":
        error = VerdictFailed("; ".join(summary.verdict.reasons), where=f"verdict {summary.verdict.outcome} for {summary.name}",
                              hint=f"`lmflows show {summary.report.short}` has the whole report; try another recipe "
                                   "(quantize.search_scale, samples), or another limit (evaluate.max_perplexity_ratio)")
        error.summary = summary
        raise error
    return summary
