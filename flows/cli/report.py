"""`lmflows report`: the page of a run, or of any report artifact, in the browser."""

from __future__ import annotations

import os
import shutil
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from artifacts.records.report import PAGE
from artifacts.store.local import LocalStore
from configs import paths
from configs.errors import ArtifactMissing, ConfigError, LmflowsError
from flows.cli.terminal import say
from flows.run.lookup import find, resolve, stores
from flows.run.record import SUMMARY, RunSummary

SHORTEST_ID = 6  # characters of a flow run's id, as of a digest


@dataclass(frozen=True)
class FinishedRun:
    folder: str
    summary: RunSummary


def report(
    which: Annotated[
        str,
        typer.Argument(
            metavar="RUN|DIGEST",
            help="a pipeline's name (its latest run), a run's folder or Prefect id, "
            "or a digest; the first characters will do",
        ),
    ],
    open_: Annotated[bool, typer.Option("--open/--no-open", help="open it in a browser")] = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="copy the page there; it needs no other file"
        ),
    ] = None,
) -> None:
    """Show the report of a run, or of an artifact, as a page in the browser."""
    page = find_page(which)
    if output is not None:
        page = copied(page, output)
    say(str(page))
    if open_ and has_display():
        webbrowser.open(page.absolute().as_uri())


def find_page(which: str) -> Path:
    """The page of a run or of a report artifact.

    Raises:
        ArtifactMissing: nothing has that name, or more than one thing does.
        ConfigError: the artifact is no report, or a report without a page.
    """
    digests = {run.summary.report: run.folder for run in matching(which)}
    if len(digests) > 1:
        raise ArtifactMissing(
            f"{len(digests)} runs match {which!r}: {', '.join(sorted(digests.values()))}",
            where=str(paths.runs()),
            hint="give more of the run's id, or its folder's name",
        )
    if digests:
        [digest] = digests
        return page_of(find(digest), digest)
    return page_of(*_resolve(which))


def page_of(store: LocalStore, digest: str) -> Path:
    """The page of a report artifact.

    Raises:
        ConfigError: the artifact is no report, or a report without a page.
    """
    artifact = store.open(digest)
    if artifact.kind != "report":
        about = [other[:12] for other in reports_about(digest)]
        hint = (
            f"`lmflows report {about[0]}` is about it"
            if about
            else f"`lmflows show {artifact.short}` shows what it is"
        )
        raise ConfigError(
            f"artifact {artifact.short} is not a report but of kind {artifact.kind}",
            where="lmflows report",
            hint=hint,
        )
    page = artifact.path / PAGE
    if not page.exists():
        raise ConfigError(
            f"report {artifact.short} has no page: an earlier version made it",
            where="lmflows report",
            hint=f"`lmflows show {artifact.short}` shows its text; the next run makes a page",
        )
    return page


def matching(which: str) -> list[FinishedRun]:
    """The runs that a word names: by folder, else by pipeline (the latest), else by the first
    characters of the Prefect id."""
    runs = list(finished())
    exact = [run for run in runs if run.folder == which]
    if exact:
        return exact
    named = [run for run in runs if run.summary.name == which]
    if named:
        return named[-1:]
    return [
        run
        for run in runs
        if len(which) >= SHORTEST_ID and run.summary.flow_run_id.startswith(which.lower())
    ]


def finished() -> Iterator[FinishedRun]:
    """The runs on this machine that have come to a verdict, oldest first."""
    for file in sorted(paths.runs().glob(f"*/{SUMMARY}")):  # a folder's name begins with the time
        try:
            yield FinishedRun(file.parent.name, RunSummary.model_validate_json(file.read_bytes()))
        except ValidationError:
            continue  # a run that was killed while it wrote this


def reports_about(digest: str) -> list[str]:
    """The reports that have this artifact as a parent, newest first."""
    found = []
    for store in stores():
        for other in reversed(store.digests()):
            with suppress(LmflowsError):  # a damaged manifest is `lmflows verify`'s business
                manifest = store.manifest(other)
                if manifest.kind == "report" and any(
                    parent.digest == digest for parent in manifest.parents
                ):
                    found.append(other)
    return found


def copied(page: Path, target: Path) -> Path:
    """A copy of the page, which unlike the artifact's own file may be written to.

    Raises:
        ConfigError: the file cannot be written.
    """
    target = target / PAGE if target.is_dir() else target
    try:
        shutil.copyfile(page, target)
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be written: {error.strerror}",
            where="--output",
            hint="name a file in a folder that exists",
        ) from None
    return target


def has_display() -> bool:
    """Whether a browser could be seen by the person who asks."""
    return bool(
        sys.platform == "darwin" or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"}
    )


def _resolve(which: str) -> tuple[LocalStore, str]:
    digits = which.removeprefix("sha256:")
    if not digits or set(digits) - set("0123456789abcdef"):
        known = sorted({run.summary.name for run in finished()})
        raise ArtifactMissing(
            f"no finished run and no artifact is called {which!r}",
            where=str(paths.home()),
            hint=(
                f"runs with a report: {', '.join(known)}"
                if known
                else "no run has come to a verdict yet"
            ),
        )
    return resolve(digits)
