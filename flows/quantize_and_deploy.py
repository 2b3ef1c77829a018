"""The main flow: a model goes in by name, a judged and served W4A16 endpoint comes out.

Read top to bottom it is the project's one sentence. Every line with `run.perform` is a Prefect
task; what passes between them is a model artifact.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict

from artifacts.manifest import ModelArtifact
from artifacts.records.evidence import Evidence, read_evidence
from artifacts.records.report import PAGE, Verdict
from artifacts.registry.promotion import require_no_problem
from configs import paths
from configs.errors import VerdictFailed
from configs.location import S3, Location
from configs.policy import Policy, load_policy
from configs.reader import load
from configs.schema import Pipeline
from configs.variants import Variant
from flows.evaluation import Evaluation, baseline_request
from flows.repair import Recipes, climb
from flows.run import events
from flows.run.lookup import whoami
from flows.run.run import Done, Run, artifact_key, begin_run
from flows.run.summary import RunSummary
from tasks.capacity import CapacityRequest, CapacityResult, MachineRequest, capacity, machine
from tasks.deploy import DeployRequest, DeployResult, deploy
from tasks.download import DownloadRequest, download
from tasks.machine.gpus import choose as choose_gpus
from tasks.machine.gpus import cuda_is_visible
from tasks.measure import items_files
from tasks.pad import PadRequest, pad
from tasks.preflight import PreflightRequest, preflight
from tasks.promote import PromoteRequest, PromoteResult, SignRequest, promote, sign
from tasks.quality.objective import choose
from tasks.quantize import quantize
from tasks.report import Choice, ReportRequest, ReportResult, StepTime, report
from tasks.serving import endpoints, supervisor
from tasks.smoke_test import SmokeTestRequest, smoke_test
from tasks.texts import TextsRequest, texts
from tasks.upload import UploadRequest, upload


class Summary(BaseModel):
    """What a run has led to. `variants` is the table of variants, one row each; `store` is named if
    commands mean another by themselves."""

    model_config = ConfigDict(frozen=True)

    name: str
    served: Variant
    verdict: Verdict
    evidence: Evidence
    candidate: ModelArtifact
    report: ModelArtifact
    variants: tuple[dict[str, str], ...]
    attempts: int
    choice: Choice | None
    parent_bytes: int
    candidate_bytes: int
    needs: CapacityResult
    store: Location | None
    promoted: PromoteResult | None
    deployed: DeployResult | None
    reused: tuple[str, ...]


@flow(name="quantize-and-deploy", flow_run_name="{config}", persist_result=False)
def quantize_and_deploy(
    config: str = "configs/demo.yaml", overrides: dict[str, Any] | None = None
) -> Summary:
    """Download, check, quantize, measure, judge, upload, promote and serve a model.

    Args:
        config: the pipeline's YAML file.
        overrides: values that replace the file's, by dotted key path, for example
            {"evaluate.documents": 8}.
    """
    pipeline = load(find_config(config), overrides)
    items = items_files(pipeline.evaluate.tasks)
    run = begin_run(
        pipeline.name, choose_gpus(pipeline.gpus, pipeline.engine.tp if cuda_is_visible() else 0)
    )
    policy = load_policy()
    store = policy.store_for(pipeline.upload.store)
    paths.remember_store(store)
    folders = (paths.workspace(), *(() if store.startswith(S3) else (Path(store),)))
    run.perform(
        machine,
        MachineRequest(
            quantize=pipeline.quantize,
            engine=pipeline.engine,
            deploy=pipeline.deploy,
            gpus=pipeline.gpus,
            folders=folders,
            store=store,
            policy=policy,
            port_is_ours=port_is_ours(pipeline),
        ),
    )
    split = run.perform(
        texts, TextsRequest(config=pipeline.texts), timeout_minutes=pipeline.texts.timeout_minutes
    )
    source = run.perform(
        download,
        DownloadRequest(source=pipeline.source),
        timeout_minutes=pipeline.source.timeout_minutes,
    )
    model, trusted = source.result.model, bool(getattr(pipeline.source, "trusted_code", None))
    done: list[Done[Any]] = [split, source]
    if multiple := pipeline.source.pad_to_multiple:
        padded = run.perform(
            pad,
            PadRequest(model=model, multiple=multiple),
            timeout_minutes=pipeline.source.timeout_minutes,
        )
        model = padded.result.model
        done.append(padded)

    checked = run.perform(
        preflight,
        PreflightRequest(
            model=model,
            texts=split.result.texts,
            quantize=pipeline.quantize,
            engine=pipeline.engine,
            served=pipeline.served_variant,
            deployed=pipeline.deploy is not None,
            trust_remote_code=trusted,
            untrusted_code=source.result.untrusted_code,
        ),
    )
    recipes = Recipes(model, split.result.texts, trusted)
    reused = run.has_done(quantize, recipes.request(pipeline.quantize))
    room = run.perform(
        capacity,
        CapacityRequest(
            model=checked.result,
            quantize=pipeline.quantize,
            evaluate=pipeline.evaluate,
            engine=pipeline.engine,
            gpus=pipeline.gpus,
            folders=folders,
            reused=reused,
        ),
    )
    needs = room.result.gpu_bytes
    spoke = run.perform(
        smoke_test,
        SmokeTestRequest(model=model, config=pipeline.smoke_test, trust_remote_code=trusted),
        timeout_minutes=pipeline.smoke_test.timeout_minutes,
        gpu_bytes=needs,
    )
    done += [checked, spoke]

    first = baseline_request(
        run, pipeline, model, split.result.texts, items, trust_remote_code=trusted
    )
    evaluation = Evaluation(run, pipeline, first, pipeline.evaluate_each_attempt, needs, done)
    parent = evaluation.parent()
    ladder = climb(run, pipeline, evaluation, recipes, needs, done)
    variants = evaluation.load_tests(evaluation.others(ladder, parent, checked.result.head_dim))
    choice = (
        choose(variants, pipeline.objective, pipeline.evaluate_each_attempt)
        if pipeline.objective
        else None
    )
    story = ReportRequest(
        name=pipeline.name,
        served=choice.figures[0][0] if choice else pipeline.served_variant,
        variants=tuple(variants),
        config=pipeline.evaluate_each_attempt,
        attempts=ladder.attempts,
        choice=choice,
        model=checked.result,
        smoke_test=spoke.result,
        steps=times(done),
    )
    judged = run.perform(report, story)
    tell(story, judged.result)
    summarize(story.name, judged.result).write(run.folder)
    served = story.outcome(story.served)
    assert served.evidence is not None
    stored = run.perform(
        upload,
        UploadRequest(artifacts=(served.model, judged.result.report, served.evidence), store=store),
    )

    passed = judged.result.verdict.outcome == "PASS"
    promoted, deployed = (
        put_into_service(
            run,
            pipeline,
            story.served,
            stored.result.uploaded,
            Place(store, policy),
            trusted,
            needs,
        )
        if passed
        else (None, None)
    )
    summary = Summary(
        name=pipeline.name,
        served=story.served,
        verdict=judged.result.verdict,
        evidence=read_evidence(served.evidence),
        candidate=served.model,
        report=judged.result.report,
        variants=judged.result.variants,
        attempts=len(ladder.attempts),
        choice=choice,
        parent_bytes=parent.model_bytes,
        candidate_bytes=served.model_bytes,
        needs=room.result,
        store=None if store == policy.store_for(None) else store,
        promoted=promoted,
        deployed=deployed,
        reused=tuple(item.name for item in done if item.reused),
    )
    return stand_by(summary)


def summarize(name: str, judged: ReportResult) -> RunSummary:
    """What `lmflows report RUN` looks up."""
    return RunSummary(
        name=name,
        flow_run_id=str(flow_run.id or ""),
        report=judged.report.digest,
        verdict=judged.verdict.outcome,
    )


def times(done: list[Done[Any]]) -> tuple[StepTime, ...]:
    """What the steps took, of those whose answer is kept."""
    return tuple(
        StepTime(
            name=item.name,
            seconds=item.seconds,
            peak_rss_bytes=item.peak_rss_bytes,
            peak_gpu_bytes=item.peak_gpu_bytes,
        )
        for item in done
        if item.kept
    )


@dataclass(frozen=True)
class Place:
    """Where artifacts are uploaded to, and what holds there."""

    store: str
    policy: Policy


def put_into_service(
    run: Run,
    pipeline: Pipeline,
    served: Variant,
    uploaded: tuple[ModelArtifact, ...],
    place: Place,
    trusted: bool,
    gpu_bytes: int,
) -> tuple[PromoteResult, DeployResult | None]:
    """Promote what has passed, and serve it if the pipeline says where.

    Args:
        served: the variant that is put into service.
        uploaded: candidate, report and evidence, as folders on this machine.
    """
    candidate, story, evidence = uploaded
    if place.policy.sign is not None:
        run.perform(
            sign,
            SignRequest(
                store=place.store, digests=(candidate.digest, story.digest), policy=place.policy
            ),
        )
    promoted = run.perform(
        promote,
        PromoteRequest(
            model=pipeline.name,
            what=candidate.digest,
            to_stage=pipeline.promote.stage,
            report=story.digest,
            variant=served,
            engine=pipeline.engine.name,
            store=place.store,
            policy=place.policy,
            who=whoami(),
            why=f"run {flow_run.name or flow_run.id} passed its verdict",
        ),
    ).result
    if promoted.moved:
        events.promoted(promoted, "PASS")
        require_no_problem(f"{promoted.model}/{promoted.stage}", promoted.problem)
    if pipeline.deploy is None:
        return promoted, None
    request = DeployRequest(
        name=pipeline.name,
        artifact=candidate,
        report=story,
        evidence=evidence,
        store=place.store,
        policy=place.policy,
        engine=pipeline.engine,
        options=pipeline.deploy.model_copy(update={"variant": served}),
        gpus=tuple(gpu.uuid for gpu in run.gpus),
        trust_remote_code=trusted,
    )
    # the server that it replaces gives its memory back
    replaces = endpoints.read(pipeline.name) is not None
    return promoted, run.perform(deploy, request, gpu_bytes=0 if replaces else gpu_bytes).result


def find_config(config: str) -> Path:
    """The file, relative to the current folder or, for a worker that runs elsewhere, to the
    checkout."""
    path = Path(config)
    return path if path.exists() else paths.PROJECT / path


def port_is_ours(pipeline: Pipeline) -> bool:
    """Whether the wanted port is held by the endpoint that this run will replace."""
    known = endpoints.read(pipeline.name)
    return (
        known is not None
        and pipeline.deploy is not None
        and known.options.port == pipeline.deploy.port
        and supervisor.state(known)[0] in ("RUNNING", "STARTING")
    )


def tell(story: ReportRequest, judged: ReportResult) -> None:
    """The run's story, its table of variants and its page, for the Prefect UI."""
    create_markdown_artifact(
        judged.text,
        key=artifact_key(f"report {story.name}"),
        description=f"{story.name}: {judged.verdict.outcome}",
    )
    create_table_artifact(
        list(judged.variants),
        key=artifact_key(f"variants {story.name}"),
        description="the variants, measured side by side",
    )
    create_link_artifact(
        (judged.report.path / PAGE).as_uri(),
        key=artifact_key(f"page {story.name}"),
        link_text=f"{story.name}: the whole report",
        description=(
            f"on {socket.gethostname()}; elsewhere: lmflows report {judged.report.short} --output"
            " FILE"
        ),
    )


def stand_by(summary: Summary) -> Summary:
    """A run whose verdict is not PASS has failed, with everything kept for inspection."""
    verdict = summary.verdict
    if verdict.outcome != "PASS":
        remedies = {
            "FAIL": (
                "try other recipes (repair.changes, quantize.samples), or a margin that you can"
                " defend (evaluate.max_perplexity_ratio)"
            ),
            "INCONCLUSIVE": (
                "give more held-out text (texts.held_out_documents, evaluate.max_documents)"
            ),
            "ANOMALOUS": (
                "find out what is wrong with the measurement before you trust any figure of it"
            ),
        }
        error = VerdictFailed(
            "; ".join(verdict.reasons),
            where=f"verdict {verdict.outcome} for {summary.name}",
            hint=(
                f"`lmflows report {summary.report.short}` shows it all; {remedies[verdict.outcome]}"
            ),
        )
        error.summary = summary
        raise error
    return summary
