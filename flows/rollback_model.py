"""The rollback flow: a stage back to what it had before, in one write. No approval and no new
evidence: it is for the night."""

from __future__ import annotations

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, ConfigDict, Field

from artifacts.registry.change import require_no_problem
from artifacts.registry.refs import ModelName, Stage
from artifacts.store.local import LocalStore
from configs.location import LocationOrNothing
from configs.policy import load_policy
from flows.run import events
from flows.run.lookup import whoami
from flows.run.publish import artifact_key, publish_links
from flows.run.run import begin_run
from tasks.promote import PromoteResult, RollbackRequest, roll_back


class Rollback(BaseModel):
    """What to take back."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    model: ModelName = Field(title="Model", description="its name in the registry")
    stage: Stage = Field(title="Stage")
    why: str = Field(min_length=1, title="Why", description="goes into the history")
    to: str = Field(
        default="",
        title="To",
        description=(
            "a digest of the stage's history, or its first digits; empty: what it had before"
        ),
    )
    store: LocationOrNothing = Field(
        default="", title="Store", description="empty: the policy's, else this worker's"
    )


@flow(
    name="rollback-model",
    flow_run_name="{rollback.model} {rollback.stage} back",
    persist_result=False,
)
def rollback_model(rollback: Rollback) -> PromoteResult:
    """Point a stage of a model back at what it pointed to before.

    Raises:
        PromotionRefused: there is nothing whole to go back to. The stage is as it was.
    """
    policy = load_policy()
    store = policy.store_for(rollback.store)
    run = begin_run(f"rollback-{rollback.model}")
    request = RollbackRequest(
        model=rollback.model,
        stage=rollback.stage,
        store=store,
        policy=policy,
        to=rollback.to or None,
        who=whoami(),
        why=rollback.why,
    )
    result = run(roll_back, request)
    if result.moved:
        events.rolled_back(result)
    require_no_problem(f"{result.model}/{result.stage}", result.problem)
    try:
        show(rollback, result, store, run.store)
    except Exception as error:
        # the stage is back: what a page shows of it must not turn that into a failure
        get_run_logger().warning(
            "the run's page has no links to what %s/%s serves now: %s",
            rollback.model,
            rollback.stage,
            error,
        )
    return result


def show(rollback: Rollback, result: PromoteResult, store: str, here: LocalStore) -> None:
    """What the stage points to now, with the report, the parent and the child, on the run's page in
    the Prefect UI."""
    create_markdown_artifact(
        f"# {rollback.model}/{rollback.stage} is back\n\n| | digest |\n|---|---|\n| now |"
        f" `{result.digest}` |\n| its report | `{result.report}` |\n| before | `{result.previous}`"
        f" |\n\n`lmflows registry history {rollback.model} {rollback.stage}` has it all.",
        key=artifact_key(f"rollback {rollback.model} {rollback.stage}"),
        description=f"{rollback.model}/{rollback.stage} is back",
    )
    publish_links(rollback.model, rollback.stage, store, result.report, here)
