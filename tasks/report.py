"""The report step: the verdict about a run's candidate, and the report that people read, as an
artifact of its own that names what it speaks of."""

from __future__ import annotations

from artifacts.manifest import ModelArtifact, Parent, canonical_json
from artifacts.records.outcomes import RunOutcome
from artifacts.records.report import MARKDOWN, PAGE, VARIANTS, VERDICT, Verdict
from tasks.runner.step import Context, Request, Result, step, versions


class ReportRequest(RunOutcome, Request):
    """What a run has found."""


class ReportResult(Result):
    """`variants` is the table of variants: one row each, as text."""

    report: ModelArtifact
    verdict: Verdict
    variants: tuple[dict[str, str], ...]
    text: str


@step(child=False, cached=False)
def report(request: ReportRequest, context: Context) -> ReportResult:
    """Judge the candidate by the evidence, and write the report."""
    # it loads what draws and what judges, which the command line has no use for
    from tasks.reporting.data import collect
    from tasks.reporting.markdown import markdown
    from tasks.reporting.page import render
    from tasks.reporting.tables import variant_rows

    data = collect(request, context.store)
    verdict = data.verdict
    rows = variant_rows(data)
    text = markdown(data)
    context.log(f"{verdict.outcome}: {'; '.join(verdict.reasons)}")
    with context.store.staging() as staging:
        staging.write(VERDICT, canonical_json(verdict.model_dump(mode="json")))
        staging.write(VARIANTS, canonical_json(rows))
        staging.write(MARKDOWN, text.encode())
        staging.write(PAGE, render(data).encode())
        artifact = context.store.commit(
            staging,
            "report",
            recipe={"versions": versions(("scipy", "matplotlib", "jinja2"))},
            parents=[
                Parent(role="candidate", digest=verdict.candidate),
                Parent(role="parent", digest=data.evidence.parent),
                Parent(role="evidence", digest=verdict.evidence),
            ],
        )
    return ReportResult(report=artifact, verdict=verdict, variants=tuple(rows), text=text)
