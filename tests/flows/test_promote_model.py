"""Promotion and rollback as a team runs them: deployments on a Prefect server, started with a
form's values, executed by a worker, approved over the API as the UI does it."""

# covers flows/rollback_model.py
# covers flows/run/events.py

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from artifacts.registry.refs import Registry, Stage
from artifacts.store.local import LocalStore
from configs import paths
from tests.support.patience import PATIENCE
from tests.support.places import judged, promote, roll_back
from tests.support.prefect_server import prefect_server

pytestmark = pytest.mark.slow
FAMILY = "lmflows.model."


@dataclass(frozen=True)
class Team:
    """A Prefect server with the project's deployments, a worker, and a store."""

    api: str
    store: LocalStore

    def ask(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        data = None if body is None else json.dumps(body).encode()
        deadline = time.monotonic() + PATIENCE
        while True:
            request = urllib.request.Request(
                f"{self.api}/{path}", data, {"Content-Type": "application/json"}, method=method
            )
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:  # SQLite has one writer, and the server says so
                if error.code != 503 or time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def start(self, deployment: str, **parameters: Any) -> str:
        flow = {"promote": "promote-model", "rollback": "rollback-model"}[deployment]
        found = self.ask(f"deployments/name/{flow}/{deployment}", method="GET")
        name = {"promote": "promotion", "rollback": "rollback"}[deployment]
        return str(
            self.ask(
                f"deployments/{found['id']}/create_flow_run",
                {"parameters": {name: {"store": self.store.location, **parameters}}},
            )["id"]
        )

    def wait(self, run: str, *states: str) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while True:
            found: dict[str, Any] = self.ask(f"flow_runs/{run}", method="GET")
            if found["state_type"] in states:
                return found
            assert found["state_type"] not in ("CRASHED", "FAILED", "COMPLETED"), found["state"][
                "message"
            ]
            assert time.monotonic() < deadline, found["state"]["message"]
            time.sleep(0.2)

    def answer(self, run: str, **words: str) -> dict[str, Any]:
        """As the UI's form does; the API answers 200 to a value that it refuses, too, and says so
        in the body."""
        deadline = time.monotonic() + PATIENCE
        while True:  # the run pauses a moment before its form is there
            told: dict[str, Any] = self.ask(f"flow_runs/{run}/resume", {"run_input": words})
            if "schema" not in str(told["details"]).lower() or time.monotonic() > deadline:
                return told
            time.sleep(0.2)

    def events(self, run: str) -> list[dict[str, Any]]:
        """Our events of a run; they reach the server a moment after the run's end."""
        wanted = {"event": {"prefix": [FAMILY]}, "related": {"id": [f"prefect.flow-run.{run}"]}}
        deadline = time.monotonic() + PATIENCE
        while (
            not (found := self.ask("events/filter", {"filter": wanted})["events"])
            and time.monotonic() < deadline
        ):
            time.sleep(0.2)
        return list(found)

    def current(self, stage: Stage) -> str | None:
        entry = Registry(self.store.objects).read("m", stage).ref.current
        return entry.digest if entry else None


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    home = tmp_path_factory.mktemp("team")
    (home / "home").mkdir()
    (home / "home" / "policy.yaml").write_text("approval_minutes: 30\n")
    with prefect_server(home / "server") as api:
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")
        } | {
            "PREFECT_API_URL": api,
            "PREFECT_HOME": str(home / "prefect"),
            "LMFLOWS_HOME": str(home / "home"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
        for words in (
            ["work-pool", "create", "control", "--type", "process"],
            ["deploy", "--name", "promote", "--name", "rollback"],
        ):
            done = subprocess.run(
                [*prefect, *words],
                env=environment,
                cwd=paths.PROJECT,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        worker = subprocess.Popen(
            [*prefect, "worker", "start", "--pool", "control"],
            env=environment,
            cwd=paths.PROJECT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield Team(api, LocalStore(home / "store"))
        finally:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


@pytest.fixture(scope="module")
def staged(team: Team) -> tuple[str, str]:
    """Two models that have reached staging, one after the other, through the flow."""
    digests = []
    for name in ("one", "two"):
        made = judged(team.store, name)
        for what, stage in ((made.candidate[:12], "dev"), ("dev", "staging")):
            run = team.start(
                "promote", model="m", artifact=what, to_stage=stage, why=f"{name} is better"
            )
            team.wait(run, "COMPLETED")
            [event] = team.events(run)
            assert (
                event["event"] == "lmflows.model.promoted"
                and event["resource"]["lmflows.stage"] == stage
            )
            assert (
                event["payload"]["digest"],
                event["payload"]["report"],
                event["payload"]["verdict"],
            ) == (made.candidate, made.report, "PASS")
            named = {item["prefect.resource.id"] for item in event["related"]}
            assert named >= {
                f"lmflows.artifact.{made.candidate}",
                f"lmflows.artifact.{made.report}",
            }
        digests.append(made.candidate)
    assert team.current("staging") == digests[1] and team.current("production") is None
    return digests[0], digests[1]


def test_the_parameters_are_a_form(team: Team) -> None:
    schema = team.ask("deployments/name/promote-model/promote", method="GET")[
        "parameter_openapi_schema"
    ]
    form = schema["definitions"]["Promotion"]
    assert form["properties"]["to_stage"]["enum"] == ["dev", "staging", "production"]
    assert set(form["required"]) == {"model", "artifact", "to_stage", "why"}
    assert all("title" in field for field in form["properties"].values())
    assert all("type" in field for field in form["properties"].values()), (
        "a choice between types is no place to write"
    )


def test_production_waits_for_a_person_and_the_history_has_the_name(
    team: Team, staged: tuple[str, str]
) -> None:
    run = team.start(
        "promote", model="m", artifact="staging", to_stage="production", why="release 7"
    )
    team.wait(run, "PAUSED")
    assert team.current("production") is None
    shown = {
        item["key"]: item
        for item in team.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    }
    assert (
        staged[1] in shown["promotion-m-production"]["data"]
        and "PASS" in shown["promotion-m-production"]["data"]
    )
    for role in ("report", "parent", "child"):
        assert "file://" in shown[f"{role}-m-production"]["data"]
    told = team.answer(run, decision="perhaps", who="ann", reason="?")
    assert (
        told["status"] == "REJECT"
        and team.ask(f"flow_runs/{run}", method="GET")["state_type"] == "PAUSED"
    )
    assert (
        team.answer(run, decision="approve", who="ann", reason="looked at the report")["status"]
        == "ACCEPT"
    )
    team.wait(run, "COMPLETED")
    entry = Registry(team.store.objects).read("m", "production").ref.entries[-1]
    assert (entry.digest, entry.approved_by, entry.why) == (
        staged[1],
        "ann",
        "release 7; approved: looked at the report",
    )
    [event] = team.events(run)
    assert (event["event"], event["payload"]["approved_by"]) == ("lmflows.model.promoted", "ann")


def test_a_person_can_say_no(team: Team, staged: tuple[str, str]) -> None:
    before = team.current("production")
    run = team.start(
        "promote",
        model="m",
        artifact=staged[0],
        to_stage="production",
        why="back to one",
        force="staging is empty-handed",
    )
    team.wait(run, "PAUSED")
    assert (
        team.answer(run, decision="reject", who="bob", reason="not on a Friday")["status"]
        == "ACCEPT"
    )
    failed = team.wait(run, "FAILED")
    assert (
        "bob rejected it: not on a Friday" in failed["state"]["message"]
        and team.current("production") == before
    )
    [event] = team.events(run)
    assert event["event"] == "lmflows.model.rejected" and event["payload"]["digest"] == staged[0]
    assert "not on a Friday" in event["payload"]["reason"] and event["payload"]["who"] == "bob"


def test_a_stage_that_was_not_left_out_when_it_was_shown_is_not_left_out_afterwards(
    team: Team, staged: tuple[str, str]
) -> None:
    """A reason that was given in case is none for what nobody has seen."""
    before = team.current("production")
    roll_back(
        team.store,
        "m",
        "staging",
        who="ann",
        why="to have something to promote",
        to=staged[0],
    )
    try:
        run = team.start(
            "promote",
            model="m",
            artifact="staging",
            to_stage="production",
            why="release 8",
            force="in case",
        )
        team.wait(run, "PAUSED")
    finally:
        promote(
            team.store,
            "m",
            staged[1],
            "staging",
            who="ann",
            why="the other was bad",
            force="dev has gone on",
        )
    assert team.answer(run, decision="approve", who="boss", reason="fine")["status"] == "ACCEPT"
    failed = team.wait(run, "FAILED")
    assert (
        "staging has" in failed["state"]["message"]
        and team.current("production") == before != staged[0]
    )


def test_what_may_not_be_promoted_is_rejected_before_anybody_is_asked(
    team: Team, staged: tuple[str, str]
) -> None:
    run = team.start("promote", model="m", artifact=staged[0], to_stage="production", why="skip")
    failed = team.wait(run, "FAILED")
    assert (
        "PromotionRefused" in failed["state"]["message"] or "staging" in failed["state"]["message"]
    )
    [event] = team.events(run)
    assert event["event"] == "lmflows.model.rejected"


def test_a_rollback_is_one_run_and_announced(team: Team, staged: tuple[str, str]) -> None:
    run = team.start("rollback", model="m", stage="staging", why="errors at night")
    team.wait(run, "COMPLETED")
    ref = Registry(team.store.objects).read("m", "staging").ref
    assert (ref.entries[-1].digest, ref.entries[-1].action, ref.entries[-1].why) == (
        staged[0],
        "rollback",
        "errors at night",
    )
    [event] = team.events(run)
    assert event["event"] == "lmflows.model.rolled_back"
    assert (event["payload"]["digest"], event["payload"]["previous"]) == (staged[0], staged[1])


WAITS_A_MOMENT = """
import sys
from flows.promote_model import Promotion, promote_model
promote_model(Promotion(
    model="m", artifact=sys.argv[1], to_stage="production", why="late", force="no time",
    store=sys.argv[2]))
"""


def test_without_an_answer_in_time_it_is_rejected(
    team: Team, staged: tuple[str, str], tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("approval_minutes: 0.1\n")
    before = team.current("production")
    environment = os.environ | {
        "PREFECT_API_URL": team.api,
        "PREFECT_HOME": str(tmp_path),
        "LMFLOWS_HOME": str(tmp_path),
        "LMFLOWS_POLICY": str(policy),
    }
    done = subprocess.run(
        [sys.executable, "-c", WAITS_A_MOMENT, staged[0], team.store.location],
        env=environment,
        cwd=paths.PROJECT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode != 0 and "nobody approved it within 0.1 minutes" in done.stderr
    assert team.current("production") == before
    runs = team.ask(
        "flow_runs/filter",
        {
            "flow_runs": {"state": {"type": {"any_": ["FAILED"]}}},
            "sort": "START_TIME_DESC",
            "limit": 1,
        },
    )
    [event] = team.events(runs[0]["id"])
    assert (
        event["event"] == "lmflows.model.rejected"
        and "nobody approved" in event["payload"]["reason"]
    )
