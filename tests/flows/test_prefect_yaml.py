"""prefect.yaml: Prefect ignores unknown keys in silence, so every key is checked here, and every
entrypoint is loaded."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
import yaml
from prefect.utilities.importtools import import_object

from configs import paths
from configs.reader import load
from flows.promote_model import promote_model
from flows.quantize_and_deploy import quantize_and_deploy
from flows.rollback_model import rollback_model
from flows.run.plan import find_config

FILE = yaml.safe_load((paths.PROJECT / "prefect.yaml").read_text())
DEPLOYMENTS: list[dict[str, Any]] = FILE["deployments"]
KEYS = {
    "name",
    "description",
    "entrypoint",
    "tags",
    "parameters",
    "concurrency_limit",
    "work_pool",
    "schedules",
    "version",
}


def test_no_key_is_unknown_to_prefect() -> None:
    assert FILE.keys() <= {
        "name",
        "prefect-version",
        "pull",
        "build",
        "push",
        "deployments",
        "definitions",
    }
    for deployment in DEPLOYMENTS:
        assert deployment.keys() <= KEYS
        limit = deployment.get("concurrency_limit", {"collision_strategy": "ENQUEUE"})
        assert limit.keys() <= {"limit", "collision_strategy", "grace_period_seconds"}
        assert limit["collision_strategy"] in ("ENQUEUE", "CANCEL_NEW")


def test_it_names_the_prefect_that_is_locked() -> None:
    assert FILE["prefect-version"] == version("prefect")


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_the_entrypoint_is_the_flow_itself(deployment: dict[str, Any]) -> None:
    """A path as entrypoint would load the module a second time, under another name."""
    assert ":" in deployment["entrypoint"] and "/" not in deployment["entrypoint"]
    found = import_object(deployment["entrypoint"].replace(":", "."))
    assert (
        found
        is {"gpu": quantize_and_deploy, "promote": promote_model, "rollback": rollback_model}[
            deployment["work_pool"]["name"] if "parameters" in deployment else deployment["name"]
        ]
    )


@pytest.mark.parametrize(
    "deployment",
    [item for item in DEPLOYMENTS if "parameters" in item],
    ids=lambda deployment: deployment["name"],
)
def test_the_parameters_fit_the_flow_and_name_a_config(deployment: dict[str, Any]) -> None:
    parameters = deployment["parameters"]
    assert parameters.keys() <= set(quantize_and_deploy.parameters.properties)
    load(find_config(parameters["config"]), check_files=False)
