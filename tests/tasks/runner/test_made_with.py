"""Every artifact that a library has made names its version; what came as it is names none.
(Quantized ones: test_card, test_repack.)"""

# covers tasks/runner/step.py

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from artifacts.registry.lineage import tree
from artifacts.store.local import LocalStore
from configs.sources import LocalSource
from configs.texts import PythonDocs, TextFile, Texts
from tasks.download import DownloadRequest, download
from tasks.pad import PadRequest, pad
from tasks.report import report
from tasks.runner.step import Context
from tasks.texts import TextsRequest, texts
from tests.support import planted_reports
from tests.support.measurements import compared, planted


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_files_that_came_as_they_are_were_made_by_no_library(
    store: LocalStore, tiny_model: Path
) -> None:
    """So the same files are the same artifact under any version."""
    model = download(
        DownloadRequest(source=LocalSource(type="local", path=tiny_model)), Context(store)
    ).model
    assert store.manifest(model.digest).recipe == {"source": {"type": "local"}, "trusted_code": {}}


def test_what_was_converted_or_padded_names_what_did_it(
    store: LocalStore, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    model = download(
        DownloadRequest(source=LocalSource(type="local", path=folder, allow_pickle=True)),
        Context(store),
    ).model
    assert store.manifest(model.digest).recipe["versions"]["transformers"] == version(
        "transformers"
    )
    padded = pad(PadRequest(model=model, multiple=256), Context(store)).model
    assert tree(store, padded.digest).facts.versions == {
        "python": tree(store, model.digest).facts.versions["python"],
        "torch": version("torch"),
        "safetensors": version("safetensors"),
    }


def test_texts_name_their_source_but_not_its_place(store: LocalStore, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("\n\n".join(f"document {number} about {number * 7919}" for number in range(9)))
    for source, kind in (
        (TextFile(type="file", path=file), "file"),
        (PythonDocs(type="python_docs"), "python_docs"),
    ):
        made = texts(
            TextsRequest(config=Texts(source=source, held_out_documents=2)), Context(store)
        ).texts
        recipe = store.manifest(made.digest).recipe
        assert recipe["source"] == {"type": kind} and recipe["versions"].keys() == {"python"}


def test_evidence_and_report_name_what_made_them(store: LocalStore) -> None:
    evidence = compared(store, [planted(store, [9, 7])], [planted(store, [9, 7])])
    assert store.manifest(evidence.digest).recipe["versions"]["numpy"] == version("numpy")
    site = planted_reports.Site(store)
    made = report(site.minimal(), Context(store)).report
    node = tree(store, made.digest)
    assert node.facts.versions["scipy"] == version("scipy") and node.facts.verdict == "PASS"
