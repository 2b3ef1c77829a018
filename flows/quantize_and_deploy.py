"""The main flow: a model goes in by name, a judged and served W4A16 endpoint comes out.

Read top to bottom it is the project's one sentence. Every `run(...)` is a Prefect task; what passes
between them is a model artifact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from artifacts.manifest import ModelArtifact
from artifacts.records.model import ModelSummary
from artifacts.records.outcomes import VariantOutcome
from artifacts.registry.change import require_no_problem
from configs import paths
from configs.schema import Pipeline
from configs.variants import Variant
from flows.evaluation import Baseline, Evaluation
from flows.repair import Recipes, repair
from flows.run import events
from flows.run.lookup import whoami
from flows.run.plan import Plan, make_plan
from flows.run.publish import publish_report
from flows.run.run import Run, begin_run
from flows.run.summary import Summary, require_pass
from tasks.capacity import CapacityRequest, MachineRequest, capacity, machine
from tasks.deploy import DeployRequest, DeployResult, deploy
from tasks.download import DownloadRequest, download
from tasks.pad import PadRequest, pad
from tasks.preflight import PreflightRequest, preflight
from tasks.promote import PromoteRequest, PromoteResult, SignRequest, promote, sign
from tasks.quality.objective import choose
from tasks.quantize import quantize
from tasks.report import ReportRequest, report
from tasks.smoke_test import SmokeTestRequest, smoke_test
from tasks.texts import TextsRequest, texts
from tasks.upload import UploadRequest, upload


@flow(name="quantize-and-deploy", flow_run_name="{config}", persist_result=False)
def quantize_and_deploy(
    config: str = "configs/demo.yaml", overrides: dict[str, Any] | None = None
) -> Summary:
    """Download, check, quantize, measure, judge, upload, promote and serve a model.

    Args:
        config: the pipeline's YAML file.
        overrides: values that replace the file's, by dotted key path.
    """
    plan = make_plan(config, overrides)
    pipeline = plan.pipeline
    run = begin_run(pipeline.name, plan.gpus)
    run(machine, MachineRequest(pipeline=pipeline, destination=plan.destination))
    split = run(texts, TextsRequest(config=pipeline.texts)).texts
    source = run(download, DownloadRequest(source=pipeline.source))
    model = pad_if_asked(run, plan, source.model)
    facts = run(preflight, preflight_request(pipeline, model, split, source.untrusted_code))
    recipes = Recipes(model, split)
    reused = run.has_done(quantize, recipes.request(pipeline.quantize))
    needs = run(capacity, capacity_request(plan, facts, reused=reused))
    run.gpu_bytes = needs.gpu_bytes
    spoke = run(smoke_test, SmokeTestRequest(model=model, config=pipeline.smoke_test))

    judged_by = pipeline.evaluate_each_attempt
    evaluation = Evaluation(run, pipeline, Baseline(model, split, plan.items), judged_by)
    parent = evaluation.parent()  # before any recipe: what cannot be measured shows at once
    repaired = repair(run, pipeline, evaluation, recipes)
    variants = evaluation.variants(parent, repaired.served, repaired.candidate, facts.head_dim)
    choice = choose(variants, pipeline.objective)
    chosen = choice.variant if choice else pipeline.served_variant
    served = variants[pipeline.variants.index(chosen)]
    report_request = ReportRequest(
        name=pipeline.name,
        served=served.variant,
        variants=variants,
        config=judged_by,
        attempts=repaired.attempts,
        choice=choice,
        model=facts,
        smoke_test=spoke,
        steps=run.times,
    )
    judged = run(report, report_request)
    publish_report(run, pipeline.name, judged)

    uploaded = upload_served(run, plan, served, judged.report)
    passed = judged.verdict.outcome == "PASS"
    promoted = promote_candidate(run, plan, uploaded) if passed else None
    deployed = deploy_candidate(run, plan, uploaded) if passed else None
    summary = Summary(
        asked=report_request,
        judged=judged,
        needs=needs,
        store=plan.destination.named_store,
        promoted=promoted,
        deployed=deployed,
        reused=run.reused,
    )
    return require_pass(summary)


def preflight_request(
    pipeline: Pipeline, model: ModelArtifact, texts: ModelArtifact, untrusted_code: dict[str, str]
) -> PreflightRequest:
    """What is asked of the model before any long work."""
    return PreflightRequest(
        model=model,
        texts=texts,
        quantize=pipeline.quantize,
        engine=pipeline.engine,
        served=pipeline.served_variant,
        deployed=pipeline.deploy is not None,
        untrusted_code=untrusted_code,
    )


def capacity_request(plan: Plan, model: ModelSummary, *, reused: bool) -> CapacityRequest:
    """What this model and recipe need of the machine. `reused`: it is quantized already."""
    return CapacityRequest(
        pipeline=plan.pipeline, destination=plan.destination, model=model, reused=reused
    )


def pad_if_asked(run: Run, plan: Plan, model: ModelArtifact) -> ModelArtifact:
    """The model with its dimensions padded, if the config says to which multiple."""
    source = plan.pipeline.source
    if source.pad_to_multiple is None:
        return model
    request = PadRequest(
        model=model, multiple=source.pad_to_multiple, timeout_minutes=source.timeout_minutes
    )
    return run(pad, request).model


@dataclass(frozen=True)
class Uploaded:
    """What is put into service, as folders on this machine."""

    variant: Variant
    candidate: ModelArtifact
    report: ModelArtifact
    evidence: ModelArtifact


def upload_served(run: Run, plan: Plan, served: VariantOutcome, report: ModelArtifact) -> Uploaded:
    """Upload the variant that is served, with its report and evidence."""
    assert served.evidence is not None
    paths.remember_store(plan.destination.store)
    request = UploadRequest(
        artifacts=(served.model, report, served.evidence), store=plan.destination.store
    )
    candidate, report, evidence = run(upload, request).uploaded
    return Uploaded(served.variant, candidate, report, evidence)


def promote_candidate(run: Run, plan: Plan, uploaded: Uploaded) -> PromoteResult:
    """Sign what has passed if the policy asks for it, and move the pipeline's stage to it."""
    if plan.destination.policy.sign is not None:
        digests = (uploaded.candidate.digest, uploaded.report.digest)
        run(
            sign,
            SignRequest(
                store=plan.destination.store, digests=digests, policy=plan.destination.policy
            ),
        )
    request = PromoteRequest(
        model=plan.pipeline.name,
        what=uploaded.candidate.digest,
        to_stage=plan.pipeline.promote.stage,
        report=uploaded.report.digest,
        variant=uploaded.variant,
        engine=plan.pipeline.engine.name,
        store=plan.destination.store,
        policy=plan.destination.policy,
        who=whoami(),
        why=f"run {flow_run.name or flow_run.id} passed its verdict",
    )
    promoted = run(promote, request)
    if promoted.moved:
        events.promoted(promoted, "PASS")
        require_no_problem(f"{promoted.model}/{promoted.stage}", promoted.problem)
    return promoted


def deploy_candidate(run: Run, plan: Plan, uploaded: Uploaded) -> DeployResult | None:
    """Serve what has passed, if the pipeline says where."""
    options = plan.pipeline.deploy
    if options is None:
        return None
    request = DeployRequest(
        name=plan.pipeline.name,
        artifact=uploaded.candidate,
        report=uploaded.report,
        evidence=uploaded.evidence,
        store=plan.destination.store,
        policy=plan.destination.policy,
        engine=plan.pipeline.engine,
        options=options.model_copy(update={"variant": uploaded.variant}),
        gpus=tuple(gpu.uuid for gpu in run.gpus),
    )
    return run(deploy, request)
