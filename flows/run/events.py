"""What becomes of a model's stages, as Prefect events: an automation can post them, or deploy what
was promoted."""

from __future__ import annotations

from prefect.events import emit_event

from tasks.promote import CheckedResult, PromoteResult


def promoted(result: PromoteResult, verdict: str, approved_by: str | None = None) -> None:
    """`lmflows.model.promoted`: a stage points to something else."""
    _emit(
        "promoted",
        result.model,
        result.stage,
        {
            "digest": result.digest,
            "report": result.report,
            "previous": result.previous,
            "number": result.number,
            "verdict": verdict,
            "approved_by": approved_by,
        },
    )


def rolled_back(result: PromoteResult) -> None:
    """`lmflows.model.rolled_back`: a stage points back."""
    _emit(
        "rolled_back",
        result.model,
        result.stage,
        {
            "digest": result.digest,
            "report": result.report,
            "previous": result.previous,
            "number": result.number,
            "verdict": "PASS",
        },
    )


def rejected(
    model: str, stage: str, *, reason: str, who: str | None, checked: CheckedResult | None
) -> None:
    """`lmflows.model.rejected`: a promotion that was asked for did not happen.

    Args:
        who: the person who rejected it, if one did.
        checked: what was proposed, if the checks got that far.
    """
    payload: dict[str, str | int | None] = {
        "digest": checked.digest if checked else None,
        "report": checked.report if checked else None,
        "previous": checked.previous if checked else None,
        "verdict": checked.verdict.outcome if checked else None,
        "reason": reason,
        "who": who,
    }
    _emit("rejected", model, stage, payload)


def _emit(what: str, model: str, stage: str, payload: dict[str, str | int | None]) -> None:
    related = [
        {"prefect.resource.id": f"lmflows.artifact.{payload[role]}", "prefect.resource.role": role}
        for role in ("digest", "report", "previous")
        if payload.get(role)
    ]
    resource = {
        "prefect.resource.id": f"lmflows.model.{model}.{stage}",
        "prefect.resource.name": f"{model}/{stage}",
        "lmflows.model": model,
        "lmflows.stage": stage,
    }
    emit_event(
        f"lmflows.model.{what}",
        resource=resource,
        related=related,
        payload={"model": model, "stage": stage, **payload},
    )
