"""`lmflows compare`: two models of any kind side by side, with a verdict, a report and an exit
status."""

# covers flows/cli/compare.py
# covers flows/run/lookup.py

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from artifacts.records.report import Verdict
from artifacts.store.local import LocalStore
from tests.support.site import Site

SHORT = ("--set", "evaluate.probes=0", "--set", "evaluate.max_perplexity_ratio=1.06")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, prefect_api: str) -> Site:
    """The small model, and one that is like it but for noise in one matrix."""
    folder = tmp_path_factory.mktemp("compare")
    for name, factor in (("good", 0.999), ("bad", 0.3)):
        shutil.copytree(tiny_model, folder / name)
        tensors = load_file(folder / name / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"] *= factor
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    return Site(folder, tiny_model, 9, prefect_api)  # nothing is served


def compare(site: Site, first: Path | str, second: Path | str, *more: str) -> tuple[int, str]:
    return site.call(
        "compare", str(first), str(second), "--config", str(site.config), *SHORT, *more
    )


@pytest.fixture(scope="module")
def passed(site: Site, tiny_model: Path) -> str:
    status, output = compare(site, tiny_model, site.folder / "good")
    assert status == 0, output
    return output


@pytest.mark.slow
def test_two_folders_are_compared_and_there_is_a_report(site: Site, passed: str) -> None:
    found = re.search(r"^report +(\w{64})$", passed, re.MULTILINE)
    assert "PASS within the margin" in passed and found
    report = LocalStore(site.home / "workspace").open(found[1])
    verdict = Verdict.model_validate_json((report.path / "verdict.json").read_bytes())
    assert (verdict.outcome, verdict.variant) == ("PASS", "fp16") and verdict.difference is not None
    page = (report.path / "report.html").read_text()
    assert verdict.candidate[:12] in page and "<svg" in page
    status, output = site.call(
        "report", found[1][:10], "--no-open", "--output", str(site.folder / "page.html")
    )
    assert status == 0 and (site.folder / "page.html").read_text() == page, output


@pytest.mark.slow
def test_a_worse_one_ends_with_status_3_and_the_baseline_is_not_measured_again(
    site: Site, passed: str, tiny_model: Path
) -> None:
    status, output = compare(site, tiny_model, site.folder / "bad")
    assert status == 3, output
    assert (
        "VerdictFailed" in output
        and "worse than the margin" in output
        and "Traceback" not in output
    )
    assert re.search(r"reused +measure fp16 ", output)


@pytest.mark.slow
def test_artifacts_are_named_by_the_first_digits_of_their_digest(site: Site, passed: str) -> None:
    digest = re.search(r"^report +(\w{64})$", passed, re.MULTILINE)
    assert digest
    manifest = LocalStore(site.home / "workspace").manifest(digest[1])
    status, output = compare(
        site, manifest.parent("parent")[:10], manifest.parent("candidate")[:10]
    )
    assert status == 0 and re.search(r"reused +measure fp16 ", output), output


@pytest.mark.parametrize(
    ("first", "second", "more", "expected", "words"),
    [
        ("0123456789ab", "good", (), 1, "no artifact starts with '0123456789ab'"),
        ("good", "good", (), 2, "both are the same artifact"),
        ("good", "bad", ("--kv=-kv8",), 2, "transformers has no quantized KV cache"),
        ("good", "bad", ("--kv=-kv7",), 2, "no variant 'fp16-kv7'"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_error(
    site: Site, first: str, second: str, more: tuple[str, ...], expected: int, words: str
) -> None:
    places = [
        str(site.folder / name) if name in ("good", "bad") else name for name in (first, second)
    ]
    status, output = compare(site, *places, *more)
    assert (
        status == expected and words in output.replace("\n", " ") and "Traceback" not in output
    ), output
