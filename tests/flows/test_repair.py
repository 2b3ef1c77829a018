"""Repair through the command line, on a real model that AWQ ruins in one layer.

That layer's o_proj has a column a hundred times larger than the rest of its group, and v_proj makes
up for it: the function is the same, but four bits for such a group leave nothing of the other
columns. AWQ does not smooth o_proj where heads share keys and values, so neither recipe mends it;
the layer in fp16 does.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from artifacts.records.evidence import read_evidence
from artifacts.records.report import Verdict
from artifacts.store.local import LocalStore
from tests.support.site import Site

FACTOR, COLUMN, HEAD = 100.0, 5, 64
SETTINGS = (
    "--set",
    "repair.changes=[{samples_times: 64}, {search_scale: true}, {keep_layers: 1}]",
    "--set",
    "quantize.samples=64",
    "--set",
    "deploy=null",
    "--set",
    "evaluate.probes=0",
    "--set",
    "evaluate.max_perplexity_ratio=1.06",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, prefect_api: str) -> Site:
    folder = tmp_path_factory.mktemp("repair")
    shutil.copytree(tiny_model, folder / "model")
    tensors = load_file(folder / "model/model.safetensors")
    name = "model.layers.1.self_attn.{}_proj.weight"
    tensors[name.format("v")][COLUMN] /= FACTOR
    for head in (0, 1):  # both read the same values
        tensors[name.format("o")][:, head * HEAD + COLUMN] *= FACTOR
    save_file(tensors, folder / "model/model.safetensors", metadata={"format": "pt"})
    return Site(folder, folder / "model", 0, prefect_api)


@pytest.fixture(scope="module")
def repaired(site: Site) -> str:
    status, output = site.run(*SETTINGS)
    assert status == 0, output
    return output


@pytest.mark.slow
def test_the_first_recipe_that_passes_is_taken(site: Site, repaired: str) -> None:
    assert re.search(
        r"FAIL: worse than the margin: .*; attempt 2: 4096 calibration samples", repaired
    )
    assert "attempt 2 cannot be made: the calibration text gives" in repaired
    # with as many samples as before
    assert re.search(
        r"FAIL: worse than the margin: .*; attempt 3: scale search$", repaired, re.MULTILINE
    )
    assert re.search(
        r"FAIL: worse than the margin: .*; attempt 4: the 1 most damaged layers in fp16", repaired
    )
    assert (
        "PASS within the margin" in repaired and "taken from 3 attempts at a candidate" in repaired
    )
    assert (
        len(site.logs("quantize"))
        == len(site.logs("quantize-attempt-3"))
        == len(site.logs("keep_layers-attempt-4"))
        == 1
    )


@pytest.mark.slow
def test_each_attempt_is_an_artifact_with_evidence_of_its_own(site: Site, repaired: str) -> None:
    workspace = LocalStore(site.home / "workspace")
    manifests = {digest: workspace.manifest(digest) for digest in workspace.digests()}
    candidates = {digest for digest, manifest in manifests.items() if manifest.kind == "w4a16"}
    judged = {
        evidence.candidate: evidence.perplexity_ratio
        for digest, manifest in manifests.items()
        if manifest.kind == "evidence"
        and not (evidence := read_evidence(workspace.open(digest))).itself
    }
    assert judged.keys() == candidates and len(candidates) == 3
    kept = next(
        digest
        for digest in candidates
        if "keep_layers" in manifests[digest].recipe and manifests[digest].recipe["keep_layers"]
    )
    assert (
        manifests[kept].recipe["keep_layers"] == [1] and judged[kept] == min(judged.values()) < 1.06
    )
    assert sorted(judged.values())[1] > 1.06
    summary = json.loads(next((site.home / "runs").glob("*/summary.json")).read_text())
    verdict = Verdict.model_validate_json(
        (workspace.open(summary["report"]).path / "verdict.json").read_bytes()
    )
    assert (verdict.outcome, verdict.candidate) == ("PASS", kept)


@pytest.mark.slow
def test_an_exhausted_ladder_ends_with_status_3_and_the_best_attempt(
    site: Site, repaired: str
) -> None:
    status, output = site.run(
        *SETTINGS[2:], "--set", "repair.changes=[{samples_times: 64}, {search_scale: true}]"
    )
    assert status == 3, output
    assert (
        "VerdictFailed" in output
        and "worse than the margin" in output
        and "try other recipes" in output
    )
    assert not re.search(r"(done|start) +(promote|deploy)", output)
    assert re.search(r"reused +quantize attempt 3", output)
