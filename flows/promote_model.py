"""The promotion flow: a model's artifact from one stage to the next. Production waits for a
person's word in the Prefect UI.

It waits in a living process (a pause, not a suspension), so that a timeout is told and announced as
the rejection that it is; the process holds no GPU and no lock, and if it dies nothing was promoted.
"""

from __future__ import annotations

from typing import Literal

from prefect import flow, pause_flow_run
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from pydantic import BaseModel, ConfigDict, Field

from artifacts.registry.change import require_no_problem
from artifacts.registry.names import NOTHING
from artifacts.registry.refs import ModelName, Stage
from artifacts.store.local import LocalStore
from configs.errors import LmflowsError, PromotionRefused
from configs.location import LocationOrNothing
from configs.policy import load_policy
from flows.run import events
from flows.run.lookup import whoami
from flows.run.publish import artifact_key, publish_links
from flows.run.run import begin_run
from tasks.promote import (
    CheckedResult,
    PromoteRequest,
    PromoteResult,
    PromotionRequest,
    check_promotion,
    promote,
)

POLL_SECONDS = 5


class Promotion(BaseModel):
    """What to promote, and where to."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    model: ModelName = Field(title="Model", description="its name in the registry")
    artifact: str = Field(
        min_length=3,
        title="Artifact",
        description="dev or staging: what that stage has; or a digest, or its first digits",
    )
    to_stage: Stage = Field(title="To stage")
    why: str = Field(min_length=1, title="Why", description="goes into the history")
    force: str = Field(
        default="",
        title="Leave out the stage before",
        description="the reason; it goes into the history; empty: no",
    )
    variant: str = Field(
        default="",
        title="Variant",
        description="that will be served; empty: what the verdict is about",
    )
    engine: str = Field(
        default="",
        title="Engine",
        description="that will serve it; empty: what the verdict is about",
    )
    store: LocationOrNothing = Field(
        default="", title="Store", description="empty: the policy's, else this worker's"
    )


class Approval(RunInput):
    """A person's word on a promotion to production."""

    model_config = ConfigDict(str_strip_whitespace=True)

    decision: Literal["approve", "reject"] = Field(title="Decision")
    who: str = Field(min_length=1, title="Your name", description="goes into the history")
    reason: str = Field(min_length=1, title="Reason", description="goes into the history")


@flow(
    name="promote-model",
    flow_run_name="{promotion.model} to {promotion.to_stage}",
    persist_result=False,
)
def promote_model(promotion: Promotion) -> PromoteResult:
    """Promote a model to a stage: check everything, ask a person if it is production, and write one
    line of history.

    Raises:
        PromotionRefused: a check or a person said no, or nobody said anything in time. The stage is
            as it was.
    """
    policy = load_policy()
    store = policy.store_for(promotion.store)
    run = begin_run(f"promote-{promotion.model}")
    request = PromotionRequest(
        model=promotion.model,
        what=promotion.artifact,
        to_stage=promotion.to_stage,
        store=store,
        policy=policy,
        variant=promotion.variant or None,
        engine=promotion.engine or None,
        force=promotion.force or None,
    )
    checked: CheckedResult | None = None
    answer: Approval | None = None
    try:
        checked = run(check_promotion, request)
        publish_proposal(promotion, checked, store, run.store)
        if checked.new and promotion.to_stage == "production":
            answer = ask(promotion, checked, policy.approval_minutes)
        approval = require_approval(promotion, answer)
        result = run(promote, agreed(promotion, request, checked, approval))
    except LmflowsError as error:
        events.rejected(
            promotion.model,
            promotion.to_stage,
            reason=error.message,
            who=answer.who if answer and answer.decision == "reject" else None,
            checked=checked,
        )
        raise
    if result.moved:
        approved_by = approval.who if approval else None
        events.promoted(result, checked.verdict.outcome, approved_by)
    require_no_problem(f"{result.model}/{result.stage}", result.problem)
    return result


def ask(promotion: Promotion, checked: CheckedResult, minutes: float) -> Approval:
    """Wait for a person; raises PromotionRefused if there is no answer in time."""
    where = f"{promotion.model}/{promotion.to_stage}"
    before = checked.previous[:12] if checked.previous else "nothing"
    text = (
        f"**{where}**: {before} -> **{checked.digest[:12]}**"
        f" ({checked.variant} on {checked.engine})\n\n"
        f"{checked.verdict.outcome}: {'; '.join(checked.verdict.reasons)}\n\n"
        f"why: {promotion.why}"
    )
    try:
        answer = pause_flow_run(
            wait_for_input=Approval.with_initial_data(description=text),
            timeout=round(minutes * 60),
            poll_interval=POLL_SECONDS,
        )
    except FlowPauseTimeout:
        raise PromotionRefused(
            f"nobody approved it within {minutes:g} minutes",
            where=where,
            hint="start the promotion again when somebody can look",
        ) from None
    return answer


def require_approval(promotion: Promotion, answer: Approval | None) -> Approval | None:
    """The answer, unless it is a no; None if nobody had to be asked.

    Raises:
        PromotionRefused: a person rejected it.
    """
    if answer is not None and answer.decision != "approve":
        raise PromotionRefused(
            f"{answer.who} rejected it: {answer.reason}",
            where=f"{promotion.model}/{promotion.to_stage}",
            hint="the stage is as it was",
        )
    return answer


def agreed(
    promotion: Promotion,
    request: PromotionRequest,
    checked: CheckedResult,
    approval: Approval | None,
) -> PromoteRequest:
    """What was approved, and nothing else: the same artifact and report, in the place of what the
    stage pointed to then; and if no stage was left out when it was shown, none may be now."""
    shown = request.model_copy(
        update={
            "what": checked.digest,
            "report": checked.report,
            "expect": checked.previous or NOTHING,
            "force": request.force if checked.forced else None,
        }
    )
    return PromoteRequest(
        **dict(shown),
        who=whoami(),
        why=f"{promotion.why}; approved: {approval.reason}" if approval else promotion.why,
        approved_by=approval.who if approval else None,
    )


def publish_proposal(
    promotion: Promotion, checked: CheckedResult, store: str, here: LocalStore
) -> None:
    """What is proposed, with the report, the parent and the child, on the run's page in the Prefect
    UI."""
    rows = [
        ("artifact", checked.digest),
        ("its parent", checked.parent),
        ("report", checked.report),
        ("evidence", checked.evidence),
        ("in place of", checked.previous or "nothing"),
    ]
    table = "\n".join(f"| {role} | `{digest}` |" for role, digest in rows)
    left_out = ", **a stage is left out**" if checked.forced else ""
    create_markdown_artifact(
        f"# {promotion.model} to {promotion.to_stage}\n\n"
        f"**{checked.verdict.outcome}**: {'; '.join(checked.verdict.reasons)}\n\n"
        f"{checked.variant} on {checked.engine}, in `{store}`{left_out}\n\n"
        f"| | digest |\n|---|---|\n{table}\n\n"
        f"`lmflows registry show {checked.digest[:12]}` prints what it was made from.",
        key=artifact_key(f"promotion {promotion.model} {promotion.to_stage}"),
        description=f"{promotion.model} to {promotion.to_stage}",
    )
    publish_links(promotion.model, promotion.to_stage, store, checked.report, here)
