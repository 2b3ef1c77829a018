"""`lmflows report` finds the page of a run or an artifact, opens or copies it, and says clearly why
it cannot."""

# covers configs/paths.py
# covers flows/run/record.py
# covers flows/run/summary.py

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from artifacts.store.local import LocalStore
from configs import paths
from configs.errors import ArtifactMissing, ConfigError, LmflowsError
from flows.cli import report as cli_report
from flows.run.record import SUMMARY
from tasks.report import report
from tasks.runner.step import Context
from tests.support import planted_reports
from tests.support.planted_reports import Site

IDS = (
    "0a1b2c3d-0000-4000-8000-000000000001",
    "0a1b2c3d-1111-4000-8000-000000000002",
    "ffeeddcc-2222-4000-8000-000000000003",
)


@pytest.fixture
def site(home: Path) -> Site:
    return Site(LocalStore(paths.workspace()))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser was asked for, on a machine with a display."""
    found: list[str] = []
    monkeypatch.setattr("webbrowser.open", found.append)
    monkeypatch.setenv("DISPLAY", ":7")
    return found


def ran(
    site: Site, number: int, *, name: str = "smollm2", outcome: str = "PASS"
) -> tuple[str, str]:
    """The folder and the report's digest of a run that has finished, the n-th of this machine."""
    told = report(
        site.minimal(seed=number, **planted_reports.OUTCOMES[outcome]), Context(site.store)
    )
    folder = paths.runs() / f"20260101-00000{number}-{name}-{IDS[number][:8]}"
    folder.mkdir(parents=True)
    (folder / SUMMARY).write_text(
        json.dumps(
            {
                "name": name,
                "flow_run_id": IDS[number],
                "report": told.report.digest,
                "verdict": told.verdict.outcome,
            }
        )
    )
    return folder.name, told.report.digest


def call(*words: str) -> tuple[str, Exception | None]:
    """What the command prints, and the error it ends with."""
    app = typer.Typer()
    app.command()(cli_report.report)
    found = CliRunner().invoke(app, list(words))
    return found.stdout, found.exception if isinstance(found.exception, LmflowsError) else None


def test_a_run_is_found_by_name_folder_and_id(site: Site) -> None:
    (first, one), (_, two), (_, other) = (
        ran(site, 0),
        ran(site, 1),
        ran(site, 2, name="internlm2", outcome="FAIL"),
    )
    tree = {digest: site.store.tree(digest) / "report.html" for digest in (one, two, other)}
    assert cli_report.find_page("smollm2") == tree[two]  # its latest
    assert cli_report.find_page(first) == tree[one]
    assert (
        cli_report.find_page(IDS[2])
        == cli_report.find_page("FFEEDD")
        == cli_report.find_page("internlm2")
        == tree[other]
    )


def test_a_report_is_found_by_its_digest(site: Site) -> None:
    digest = report(site.minimal(), Context(site.store)).report.digest
    for word in (digest, digest[:12], f"sha256:{digest}"):
        assert cli_report.find_page(word) == site.store.tree(digest) / "report.html"


def test_an_uploaded_report_is_found_in_its_store(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    paths.remember_store(str(tmp_path / "elsewhere"))
    elsewhere = Site(LocalStore(tmp_path / "elsewhere"))
    digest = report(elsewhere.minimal(), Context(elsewhere.store)).report.digest
    assert cli_report.find_page(digest[:10]).is_relative_to(tmp_path / "elsewhere")


def test_the_page_is_opened_and_its_path_is_told(site: Site, opened: list[str]) -> None:
    _, digest = ran(site, 0)
    page = site.store.tree(digest) / "report.html"
    said, error = call("smollm2")
    assert error is None and said == f"{page}\n" and opened == [page.as_uri()]


@pytest.mark.parametrize("options", [["--no-open"], []])
def test_nothing_is_opened_if_not_wanted_or_where_nobody_would_see_it(
    site: Site, opened: list[str], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    ran(site, 0)
    if not options:
        for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("sys.platform", "linux")
    said, error = call("smollm2", *options)
    assert error is None and said.endswith("report.html\n") and opened == []


def test_a_copy_can_be_sent_to_somebody(site: Site, tmp_path: Path, opened: list[str]) -> None:
    _, digest = ran(site, 0)
    target = tmp_path / "for the boss.html"
    said, error = call("smollm2", "--output", str(target))
    assert error is None and said == f"{target}\n" and opened == [target.as_uri()]
    assert target.read_bytes() == (site.store.tree(digest) / "report.html").read_bytes()
    target.write_text("mine")  # not a link to the artifact's file
    assert site.store.verify(digest) == []
    assert call("smollm2", "-o", str(tmp_path), "--no-open")[0] == f"{tmp_path / 'report.html'}\n"


def test_a_copy_to_nowhere_is_an_error(site: Site, tmp_path: Path) -> None:
    ran(site, 0)
    _, error = call("smollm2", "--no-open", "-o", str(tmp_path / "no folder" / "page.html"))
    assert isinstance(error, ConfigError) and "cannot be written" in str(error)


def test_several_matches_are_named(site: Site) -> None:
    folders = [ran(site, 0)[0], ran(site, 1)[0]]
    _, error = call("0a1b2c3d")
    assert (
        isinstance(error, ArtifactMissing)
        and "2 runs match '0a1b2c3d'" in str(error)
        and all(folder in str(error) for folder in folders)
    )


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        (
            "gpt-5",
            "no finished run and no artifact is called 'gpt-5' -> runs with a report: smollm2",
        ),
        ("", "no finished run and no artifact"),
        ("00c0ffee", "no artifact starts with '00c0ffee'"),
        ("../../etc", "no finished run and no artifact"),
    ],
)
def test_no_match_says_what_there_is(site: Site, word: str, problem: str) -> None:
    ran(site, 0)
    _, error = call(word)
    assert isinstance(error, ArtifactMissing) and problem in str(error)


def test_an_empty_machine_says_so(home: Path) -> None:
    _, error = call("smollm2")
    assert isinstance(error, ArtifactMissing) and "no run has come to a verdict yet" in str(error)


def test_what_is_no_report_leads_to_the_one_about_it(site: Site) -> None:
    _, digest = ran(site, 0)
    _, error = call(site.candidate.digest)
    assert (
        isinstance(error, ConfigError)
        and "is not a report but of kind w4a16" in str(error)
        and f"`lmflows report {digest[:12]}`" in str(error)
    )
    _, error = call(site.texts.short)
    assert isinstance(error, ConfigError) and f"`lmflows show {site.texts.short}`" in str(error)


def test_a_report_of_an_earlier_version_has_no_page(site: Site) -> None:
    with site.store.staging() as staging:
        staging.write("report.md", b"# old")
        old = site.store.commit(staging, "report")
    _, error = call(old.digest)
    assert isinstance(error, ConfigError) and "has no page" in str(error)


def test_a_run_that_was_killed_while_it_wrote_is_passed_over(site: Site) -> None:
    folder, digest = ran(site, 0)
    half = paths.runs() / "20260101-000009-smollm2-aaaaaaaa"
    half.mkdir()
    (half / SUMMARY).write_text('{"name": "smollm2", "flow_')
    assert cli_report.find_page("smollm2") == site.store.tree(digest) / "report.html" and folder
