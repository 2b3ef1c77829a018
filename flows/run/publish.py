"""What a run shows on its page in the Prefect UI, beside its steps: tables, markdown, links."""

from __future__ import annotations

import socket

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.runtime import flow_run

from artifacts.records.report import PAGE
from artifacts.store.local import LocalStore
from artifacts.store.open import open_store
from flows.run.record import RunSummary
from flows.run.run import Run
from tasks.report import ReportResult


def artifact_key(text: str) -> str:
    """A Prefect artifact key (lower case letters, digits and dashes) from any text."""
    plain = "".join(c if c.isascii() and c.isalnum() else " " for c in text.lower())
    return "-".join(plain.split())


def publish_table(name: str, rows: list[dict[str, str]], description: str) -> None:
    """A table on the run's page; `name` is the same for each run of its kind."""
    create_table_artifact(rows, key=artifact_key(name), description=description)


def publish_report(run: Run, name: str, judged: ReportResult) -> None:
    """The report in short, its table of variants and its page; and the run's summary, by which
    `lmflows report RUN` finds it."""
    create_markdown_artifact(
        judged.text,
        key=artifact_key(f"report {name}"),
        description=f"{name}: {judged.verdict.outcome}",
    )
    publish_table(f"variants {name}", list(judged.variants), "the variants, measured side by side")
    elsewhere = f"lmflows report {judged.report.short} --output FILE"
    create_link_artifact(
        (judged.report.path / PAGE).as_uri(),
        key=artifact_key(f"page {name}"),
        link_text=f"{name}: the whole report",
        description=f"on {socket.gethostname()}; elsewhere: {elsewhere}",
    )
    summary = RunSummary(
        name=name,
        flow_run_id=str(flow_run.id or ""),
        report=judged.report.digest,
        verdict=judged.verdict.outcome,
    )
    summary.write(run.folder)


def publish_links(model: str, stage: str, location: str, report: str, here: LocalStore) -> None:
    """Link what a stage is about: the report, and the parent and the child that it compares.

    From a bucket the report is fetched into `here`; models are named by their manifests.
    """
    place = open_store(location)
    manifest = place.manifest(report)
    digests = {
        "report": report,
        "parent": manifest.parent("parent"),
        "child": manifest.parent("candidate"),
    }
    for role, digest in digests.items():
        if isinstance(place, LocalStore):
            link = place.open(digest).path.as_uri()
        elif role == "report":
            link = place.pull(digest, here).path.as_uri()
        else:
            link = f"{location.partition('?')[0]}/manifests/sha256/{digest}.json"
        elsewhere = f"lmflows registry show {digest[:12]}"
        create_link_artifact(
            f"{link}/{PAGE}" if role == "report" else link,
            key=artifact_key(f"{role} {model} {stage}"),
            link_text=f"{role} {digest[:12]}",
            description=f"on {socket.gethostname()}; elsewhere: {elsewhere}",
        )
