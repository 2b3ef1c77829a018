"""Links on a run's page in the Prefect UI to what a stage is about: the report, the parent, and the
child that is served."""

from __future__ import annotations

import socket

from prefect.artifacts import create_link_artifact

from artifacts.records.report import PAGE
from artifacts.store.local import LocalStore
from artifacts.store.protocol import open_store
from flows.run.run import artifact_key


def link_artifacts(model: str, stage: str, location: str, report: str, here: LocalStore) -> None:
    """Link a report, and the parent and the child that it compares. From a bucket the report is
    fetched; models are named by their manifests."""
    place = open_store(location)
    manifest = place.manifest(report)
    for role, digest in (
        ("report", report),
        ("parent", manifest.parent("parent")),
        ("child", manifest.parent("candidate")),
    ):
        if isinstance(place, LocalStore):
            link = place.open(digest).path.as_uri()
        elif role == "report":
            link = place.pull(digest, here).path.as_uri()
        else:
            link = f"{location.partition('?')[0]}/manifests/sha256/{digest}.json"
        create_link_artifact(
            f"{link}/{PAGE}" if role == "report" else link,
            key=artifact_key(f"{role} {model} {stage}"),
            link_text=f"{role} {digest[:12]}",
            description=(
                f"on {socket.gethostname()}; elsewhere: lmflows registry show {digest[:12]}"
            ),
        )
