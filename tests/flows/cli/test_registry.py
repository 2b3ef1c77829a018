"""`lmflows registry`: what a person and a program are told, what is asked, and the exit status of
what may not be."""

# covers flows/cli/options.py
# covers flows/cli/registry_facts.py
# covers flows/cli/registry_names.py
# covers flows/cli/registry_show.py
# covers flows/cli/registry_store.py
# covers flows/cli/registry_tables.py
# covers flows/cli/terminal.py

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from artifacts.registry import serving
from artifacts.registry.refs import Registry
from artifacts.store.local import LocalStore
from configs import paths
from configs.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    ConfigError,
    LmflowsError,
    PromotionRefused,
    StaleRef,
)
from configs.paths import PROJECT
from flows.cli import registry
from tests.support import places
from tests.support.patience import PATIENCE
from tests.support.places import OLD, Judged, Place, judged


@dataclass(frozen=True)
class Said:
    text: str
    error: LmflowsError | None
    status: int

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def call(*words: str, fails: type[LmflowsError] | None = None) -> Said:
    found = CliRunner().invoke(registry.app, list(words))
    error = found.exception if isinstance(found.exception, LmflowsError) else None
    assert (
        error is not None or found.exception is None or isinstance(found.exception, SystemExit)
    ), found.exception
    assert type(error) is (fails or type(None)), error
    return Said(found.stdout, error, found.exit_code)


@pytest.fixture
def store(home: Path) -> LocalStore:
    """This machine's own store."""
    return LocalStore(paths.default_store())


@pytest.fixture
def one(store: LocalStore) -> Judged:
    return judged(store, "one")


@pytest.fixture
def two(store: LocalStore) -> Judged:
    return judged(store, "two")


def serves(store: LocalStore, stage: Any = "dev") -> str | None:
    entry = Registry(store.objects).read("m", stage).ref.current
    return entry.digest if entry else None


def test_from_dev_to_production_and_back(store: LocalStore, one: Judged, two: Judged) -> None:
    said = call(
        "promote", "m", one.candidate[:10], "dev", "--why", "c\u2019est bon\u00a0! \U0001f680"
    )
    assert said.text == f"m/dev: nothing -> {one.candidate[:12]}, w4a16 on transformers (entry 0)\n"
    assert "already" in call("promote", "m", one.candidate, "dev").text
    for source, stage in (("dev", "staging"), ("staging", "production")):
        call("promote", "m", source, stage, "--yes")
    told = call(
        "promote", "m", two.candidate, "production", "--force", "it burns", "--yes", "--json"
    ).json
    assert {
        key: told[key]
        for key in ("model", "stage", "moved", "number", "previous", "digest", "report", "forced")
    } == {
        "model": "m",
        "stage": "production",
        "moved": True,
        "number": 1,
        "previous": one.candidate,
        "digest": two.candidate,
        "report": two.report,
        "forced": "it burns",
    }
    assert (
        call("rollback", "m", "production", "--yes", "--why", "worse", "--json").json["digest"]
        == one.candidate
        == serves(store, "production")
    )
    assert (
        call("history", "m", "dev", "--json").json[0]["why"] == "c\u2019est bon\u00a0! \U0001f680"
    )
    entries = call("history", "m", "production", "--json").json
    assert [
        (
            entry["number"],
            entry["action"],
            entry["digest"],
            entry["why"],
            entry["forced"],
            entry["back_to"],
        )
        for entry in entries
    ] == [
        (0, "promote", one.candidate, "by hand", None, None),
        (1, "promote", two.candidate, "by hand", "it burns", None),
        (2, "rollback", one.candidate, "worse", None, 0),
    ]
    assert all("@" in entry["who"] for entry in entries)
    table = call("history", "m", "production").text.splitlines()
    assert (
        len(table) == 4
        and "forced" in table[0]
        and "it burns" in table[2]
        and "approved" not in table[0]
        and "rollback" in table[3]
    )


def test_what_there_is_as_tables_and_as_json(store: LocalStore, one: Judged) -> None:
    assert "nothing is promoted" in call("ls").text and call("ls", "--json").json == []
    call("promote", "m", one.candidate, "dev", "--why", "[red]good[/red]")
    header, row = call("ls").text.splitlines()
    assert header.split()[:5] == ["model", "stage", "digest", "variant", "engine"]
    assert all(
        word in row
        for word in (
            "m ",
            "dev",
            one.candidate[:12],
            "w4a16",
            "transformers",
            "PASS",
            "x 1.0101",
            "@",
            "[red]good[/red]",
        )
    )
    [entry] = call("ls", "--json").json
    assert (entry["digest"], entry["outcome"], entry["number"], entry["why"]) == (
        one.candidate,
        "PASS",
        0,
        "[red]good[/red]",
    )
    assert entry["perplexity_ratio"] == pytest.approx(1.01005)
    listed = call("ls", "--artifacts", "--json").json
    assert {row["digest"]: row["stages"] for row in listed} == {
        digest: "m/dev" if digest == one.candidate else "" for digest in one.all
    }
    assert len(call("ls", "--artifacts").text.splitlines()) == 6


def test_show_tells_what_is_served_why_and_where_it_comes_from(
    store: LocalStore, one: Judged, two: Judged
) -> None:
    call("promote", "m", one.candidate, "dev")
    call("promote", "m", two.candidate, "dev")
    call("promote", "m", two.candidate, "staging")
    text = call("show", "m/dev").text
    assert all(
        word in text
        for word in (
            f"m/dev {two.candidate[:12]}",
            "it is a PASS",
            f"rollback goes to {one.candidate[:12]}",
            f"candidate: w4a16 {two.candidate[:12]}",
            f"model: fp16 {two.parent[:12]}",
            "method: awq",
            two.texts[:12],
        )
    )
    assert [told["stage"] for told in call("show", "m", "--json").json] == ["dev", "staging"]
    [told] = call("show", "m/dev", "--json").json
    assert (told["digest"], told["rollback_to"], told["lineage"]["digest"]) == (
        two.candidate,
        one.candidate,
        two.report,
    )
    told = call("show", one.candidate[:12], "--json").json
    assert told["lineage"]["digest"] == one.candidate and {
        mention["digest"] for mention in told["about"]
    } == {one.report, one.evidence}
    assert "named by" in call("show", one.candidate).text
    assert call("show", "other/dev", fails=ArtifactMissing).error
    assert call("show", "other-model", fails=ArtifactMissing).error
    store.blob(store.manifest(two.report).entry("verdict.json").sha256).unlink()
    assert "cannot be read" in call("show", "m/dev").text and "unreadable" in call("ls").text


# -- what may not be


def test_what_is_refused_has_its_own_status_and_says_why(store: LocalStore, one: Judged) -> None:
    bad = judged(store, "bad", outcome="FAIL")
    for words, error, reason in (
        (("promote", "m", bad.candidate, "dev"), PromotionRefused, "FAIL"),
        (
            ("promote", "m", one.candidate, "production", "--yes"),
            PromotionRefused,
            "staging has nothing",
        ),
        (("rollback", "m", "dev"), PromotionRefused, "points to nothing"),
        (
            ("promote", "m", one.candidate, "dev", "--expect", bad.candidate),
            StaleRef,
            "points to nothing",
        ),
        (("promote", "m", one.candidate, "dev", "--variant", "fp16"), PromotionRefused, "fp16"),
        (("promote", "m", one.candidate, "live"), ConfigError, "no stage 'live'"),
        (("promote", "../m", one.candidate, "dev"), ConfigError, "cannot be a model's name"),
        (
            ("promote", "m", one.candidate, "dev", "--why", "a\x1b[31mb"),
            ConfigError,
            "cannot go into the history",
        ),
        (
            ("promote", "m", one.candidate, "dev", "--why", "\udcff"),
            ConfigError,
            "cannot go into the history",
        ),
        (
            ("promote", "m", one.candidate, "dev", "--why", "x" * 5000),
            ConfigError,
            "cannot go into the history",
        ),
        (("history", "m", "live"), ConfigError, "no stage"),
        (("history", "m/dev", "dev"), ConfigError, "cannot be"),
    ):
        said = call(*words, fails=error)
        assert said.error is not None and reason in str(said.error) and said.error.hint
    assert serves(store) is None


def test_exit_statuses_and_no_traceback(store: LocalStore, one: Judged, home: Path) -> None:
    bad = judged(store, "bad", outcome="INCONCLUSIVE")
    for words, status in (
        (["promote", "m", bad.candidate, "dev"], 3),
        (["promote", "m", one.candidate, "nowhere"], 2),
        (["verify", "0" * 64], 1),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli.main", "registry", *words],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            env=os.environ | {"LMFLOWS_HOME": str(home)},
        )
        assert done.returncode == status, done.stderr
        assert (
            done.stderr.startswith("error ")
            and "Traceback" not in done.stderr
            and "->" in done.stderr
        )


def test_production_is_not_changed_where_nobody_can_confirm(store: LocalStore, one: Judged) -> None:
    for stage in ("dev", "staging"):
        call("promote", "m", one.candidate, stage)
    error = call("promote", "m", "staging", "production", fails=ConfigError).error
    assert error is not None and "--yes" in str(error) and serves(store, "production") is None


@pytest.mark.parametrize(
    ("typed", "moves", "status"),
    [
        ("m\n", False, 0),
        ("m\n", True, 3),
        ("yes\n", False, 3),
        ("\n", False, 3),
        ("M\n", False, 3),
        ("\x03", False, 130),
    ],
)
def test_production_at_a_terminal_is_confirmed_by_typing_the_model(
    store: LocalStore, one: Judged, two: Judged, home: Path, typed: str, moves: bool, status: int
) -> None:
    """`moves`: staging, while somebody types. What was shown is what is confirmed, and nobody said
    that a stage may be left out."""
    for stage in ("dev", "staging"):
        call("promote", "m", one.candidate, stage)
    ours, theirs = pty.openpty()

    def at_a_terminal() -> None:
        # tests in the background of a script inherit an ignored one
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.login_tty(theirs)

    command = [
        sys.executable,
        "-m",
        "flows.cli.main",
        "registry",
        "promote",
        "m",
        "staging",
        "production",
    ]
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"LMFLOWS_HOME": str(home)},
        start_new_session=True,
        preexec_fn=at_a_terminal,
    )
    os.close(theirs)
    shown = b""
    while b"confirm" not in shown:
        shown += os.read(ours, 1000)
    for stage in ("dev", "staging") if moves else ():
        call("promote", "m", two.candidate, stage)
    os.write(ours, typed.encode())
    while True:
        try:
            if not (more := os.read(ours, 1000)):
                break
        except OSError:  # the other end is closed
            break
        shown += more
    os.close(ours)
    assert process.wait(PATIENCE) == status, shown.decode()
    assert b"m/production points to nothing" in shown and one.candidate[:12].encode() in shown
    assert serves(store, "production") == (one.candidate if status == 0 else None)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("s3://", "an S3 store is"),
        ("ftp://host/x", "a store is"),
        ("/no/such/folder", "no such folder"),
        ("s3://user:pw@bucket/x", "without credentials"),
        ("", "is empty"),
    ],
)
def test_a_store_that_cannot_be_is_bad_input(home: Path, location: str, reason: str) -> None:
    for words in (
        ["ls"],
        ["show", "m"],
        ["history", "m", "dev"],
        ["promote", "m", "dev", "staging"],
        ["rollback", "m", "dev"],
        ["gc"],
        ["verify"],
        ["pull", "m/dev"],
    ):
        error = call(*words, "--store", location, fails=ConfigError).error
        assert error is not None and reason in str(error) and "pw" not in str(error)


def test_the_policy_names_the_store_and_a_bad_policy_is_an_error(
    home: Path, tmp_path: Path
) -> None:
    home.mkdir()
    (home / "policy.yaml").write_text(f"store: {tmp_path / 'ours'}\n")
    place = LocalStore(tmp_path / "ours")
    one = judged(place)
    call("promote", "m", one.candidate, "dev")
    assert serves(place) == one.candidate
    (home / "policy.yaml").write_text("require_signature: true\n")
    assert call("ls", fails=ConfigError).error


# -- the store


def flip(store: LocalStore, digest: str, name: str) -> None:
    Place(store, store).spoil("blobs", store.manifest(digest).entry(name).sha256)


def test_verify_finds_a_flipped_byte_wherever_it_is_asked(
    store: LocalStore, one: Judged, two: Judged
) -> None:
    call("promote", "m", one.candidate, "dev")
    for words in ([], ["--all"], ["m/dev"], [one.candidate]):
        assert "all as in their manifests" in call("verify", *words).text
    flip(store, one.candidate, "model.safetensors")
    for words in ([], ["--all"], ["m/dev"], [one.candidate[:12]]):
        said = call("verify", *words)
        assert said.status == 1 and f"{one.candidate[:12]}  changed: model.safetensors" in said.text
    told = call("verify", "--all", "--json")
    assert told.status == 1 and told.json["problems"] == [
        {"digest": one.candidate, "problem": "changed: model.safetensors"}
    ]
    assert set(told.json["artifacts"]) == {*one.all, *two.all}
    assert call("verify", two.candidate).status == 0
    call("verify", "m/dev", "--all", fails=ConfigError)


@pytest.mark.parametrize("part", ["candidate", "parent", "texts", "evidence", "report"])
@pytest.mark.parametrize("how", ["spoil", "remove"])
def test_verify_of_what_is_served_finds_a_bad_manifest_of_anything_it_comes_from(
    store: LocalStore, one: Judged, part: str, how: str
) -> None:
    call("promote", "m", one.candidate, "dev")
    getattr(Place(store, store), how)("manifests", getattr(one, part))
    for words in ([], ["m/dev"]):
        assert call("verify", *words).status == 1


def test_verify_finds_a_ref_that_was_tampered_with(
    store: LocalStore, one: Judged, two: Judged
) -> None:
    for made in (one, two):
        call("promote", "m", made.candidate, "dev")
    ref = store.root / "refs" / "m" / "dev.json"
    ref.write_bytes(ref.read_bytes().replace(one.candidate.encode(), two.candidate.encode()))
    for words in ([], ["--all"], ["m/dev"]):
        assert call("verify", *words, fails=ArtifactDamaged).error


def test_push_brings_all_ancestors_and_pull_brings_it_back(home: Path, tmp_path: Path) -> None:
    one = judged(LocalStore(paths.workspace()))
    there = tmp_path / "there"
    told = call("push", one.report, "--store", str(there), "--json").json
    assert (
        set(told["artifacts"]) == set(one.all) == set(LocalStore(there).digests())
        and told["sent_bytes"] > 0
    )
    assert call("push", one.report, "--store", str(there), "--json").json["sent_bytes"] == 0
    call("promote", "m", one.candidate, "dev", "--store", str(there))
    path = Path(
        call("pull", "m/dev", "--store", str(there), "--to", str(tmp_path / "here")).text.strip()
    )
    assert (
        path == tmp_path / "here" / "trees" / one.candidate
        and (path / "config.json").read_bytes() == b'{"bits": 4}'
    )
    told = call("pull", one.candidate[:8], "--store", str(there), "--json").json
    assert Path(told["path"]) == paths.workspace() / "trees" / one.candidate
    call("pull", "m/staging", "--store", str(there), fails=ArtifactMissing)
    call("push", "0" * 64, "--store", str(there), fails=ArtifactMissing)


def test_a_damaged_artifact_is_neither_pushed_nor_pulled_nor_promoted(
    store: LocalStore, one: Judged, tmp_path: Path
) -> None:
    flip(store, one.candidate, "model.safetensors")
    for words in (
        ["pull", one.candidate, "--to", str(tmp_path / "here")],
        ["push", one.candidate, "--store", str(tmp_path / "there")],
    ):
        error = call(*words, fails=ArtifactDamaged).error
        assert error is not None and "changed: model.safetensors" in str(error)
    assert not LocalStore(tmp_path / "here").has(one.candidate) and not LocalStore(
        tmp_path / "there"
    ).has(one.candidate)
    error = call("promote", "m", one.candidate, "dev", fails=PromotionRefused).error
    assert error is not None and "changed: model.safetensors" in str(error)


def test_gc_says_what_would_go_and_only_does_it_when_told(
    store: LocalStore, one: Judged, two: Judged
) -> None:
    call("promote", "m", one.candidate, "dev")
    # all is young
    assert "0 artifacts and 0 files (0.0 MB) would go; 8 artifacts" in call("gc").text
    text = call("gc", "--min-age-hours", "0").text
    assert (
        two.candidate[:12] in text
        and one.candidate[:12] not in text
        and "3 artifacts and" in text
        and "--delete" in text
    )
    told = call("gc", "--min-age-hours", "0", "--json").json
    gone = {two.candidate, two.report, two.evidence}
    assert (
        {row["digest"] for row in told["artifacts"]} == gone
        and not told["deleted"]
        and told["kept"][one.candidate] == "m/dev"
    )
    assert set(store.digests()) == {*one.all, *two.all}
    told = call("gc", "--min-age-hours", "0", "--delete", "--json").json
    assert (
        told["deleted"] and told["done"]["manifests"] == 3 and set(store.digests()) == set(one.all)
    )
    assert "all as in their manifests" in call("verify", "--all").text


def test_gc_spares_what_an_endpoint_serves_until_it_is_forgotten(
    store: LocalStore, one: Judged, two: Judged
) -> None:
    served = judged(store, "served")
    serving.announce(store, "e", served.candidate)
    for made in (one, two):
        call("promote", "m", made.candidate, "dev")
    name = f"{serving.this_machine()}/e"
    assert (
        f"served by endpoint e on {serving.this_machine()} since 20"
        in call("show", served.candidate).text
    )
    assert (
        "no endpoint serves it" in call("show", "m/dev").text
        and call("show", "m/dev", "--json").json[0]["endpoints"] == []
    )
    call("gc", "--min-age-hours", "0", "--keep", "0", "--delete")
    assert set(store.digests()) == {*two.all, *served.all}
    error = call("gc", "--forget", "nobody/e", fails=ConfigError).error
    assert error is not None and name in error.hint
    call("gc", "--min-age-hours", "0", "--forget", name)
    assert len(serving.everywhere(store)) == 1 and set(store.digests()) == {*two.all, *served.all}
    call("gc", "--min-age-hours", "0", "--forget", name, "--delete")
    assert serving.everywhere(store) == [] and set(store.digests()) == set(two.all)


@pytest.mark.parametrize("hours", ["nan", "inf", "-1"])
def test_gc_with_a_number_that_is_none_touches_nothing(
    store: LocalStore, one: Judged, hours: str
) -> None:
    assert (
        CliRunner().invoke(registry.app, ["gc", "--delete", "--min-age-hours", hours]).exit_code
        != 0
    )
    assert set(store.digests()) == set(one.all)


def test_an_old_upload_is_garbage_by_default_only_after_a_week(
    store: LocalStore, one: Judged
) -> None:
    for path in (store.root / "blobs").rglob("*"):
        os.utime(path, (OLD, OLD))
    assert call("gc", "--json").json["artifacts"] == []
    for digest in one.all:
        os.utime(store.manifest_path(digest), (OLD, OLD))
    assert len(call("gc", "--json").json["artifacts"]) == 5


# -- on S3


@pytest.fixture(scope="module")
def location() -> Iterator[str]:
    with places.bucket() as server:
        yield server.location("team")


@pytest.mark.slow
def test_the_same_commands_on_s3(home: Path, location: str, tmp_path: Path) -> None:
    workspace = LocalStore(paths.workspace())
    one, two = judged(workspace, "one"), judged(workspace, "two")
    at = ("--store", location)
    for made in (one, two):
        call("push", made.report, *at)
    call("promote", "m", one.candidate, "dev", *at)
    call("promote", "m", "dev", "staging", *at)
    call("promote", "m", "staging", "production", "--yes", *at)
    call("promote", "m", two.candidate, "dev", *at)
    assert [row["digest"] for row in call("ls", "--json", *at).json] == [
        two.candidate,
        one.candidate,
        one.candidate,
    ]
    assert call("rollback", "m", "dev", "--json", *at).json["digest"] == one.candidate
    assert len(call("history", "m", "dev", *at).text.splitlines()) == 4
    assert f"m/production {one.candidate[:12]}" in call("show", "m/production", *at).text
    assert call("verify", "--all", *at).status == 0
    path = Path(call("pull", "m/production", "--to", str(tmp_path / "here"), *at).text.strip())
    assert (path / "config.json").read_bytes() == b'{"bits": 4}'
    assert (
        call("gc", "--min-age-hours", "0", "--delete", "--keep", "0", "--json", *at).json["done"][
            "manifests"
        ]
        == 3
    )
    assert {row["digest"] for row in call("ls", "--artifacts", "--json", *at).json} == set(one.all)
