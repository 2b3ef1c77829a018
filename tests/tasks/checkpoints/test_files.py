"""Model folders: what is linked, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from artifacts.store.local import LocalStore
from configs.errors import SourceError
from configs.sources import LocalSource
from tasks.download import DownloadRequest, DownloadResult, download
from tasks.runner.step import Context


def fetch(tmp_path: Path, folder: Path, **options: object) -> DownloadResult:
    source = LocalSource.model_validate({"type": "local", "path": folder, **options})
    return download(DownloadRequest(source=source), Context(LocalStore(tmp_path / "store")))


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def nothing_in(store: Path) -> bool:
    return not list(store.glob("manifests/sha256/*")) and not list(store.glob("tmp/*"))


def test_a_local_folder_is_linked_and_never_copied(folder: Path, tmp_path: Path) -> None:
    model = fetch(tmp_path, folder).model
    assert (model.path / "model.safetensors").samefile(folder / "model.safetensors")
    assert LocalStore(tmp_path / "store").verify(model.digest) == []


def test_what_does_not_belong_to_a_model_is_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "training.log").write_text("x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.json").write_text("{}")
    names = {path.name for path in fetch(tmp_path, folder).model.path.rglob("*")}
    assert "model.safetensors" in names and not names & {"training.log", ".cache", "x.json"}


def test_a_changed_file_gives_another_digest(folder: Path, tmp_path: Path) -> None:
    before = fetch(tmp_path, folder).model.digest
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 20000.0}))
    assert fetch(tmp_path, folder).model.digest != before


def test_a_folder_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="no weights"):
        fetch(tmp_path, folder)
    assert nothing_in(tmp_path / "store")


def test_a_truncated_weight_file_is_refused(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(SourceError, match="truncated"):
        fetch(tmp_path, folder)
    assert nothing_in(tmp_path / "store")


def test_a_missing_shard_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "model-00002-of-00002.safetensors"}})
    )
    with pytest.raises(SourceError, match="model-00002-of-00002"):
        fetch(tmp_path, folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "extra/weights.pkl"])
def test_a_pickle_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04")
    with pytest.raises(SourceError, match=name):
        fetch(tmp_path, folder)
    assert nothing_in(tmp_path / "store")


def test_a_pickle_can_be_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert not (
        fetch(tmp_path, folder, exclude=["*.bin"]).model.path / "pytorch_model.bin"
    ).exists()


def test_allowed_pickles_become_safetensors(folder: Path, tmp_path: Path, tiny_model: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    model = fetch(tmp_path, folder, allow_pickle=True).model
    assert not (model.path / "pytorch_model.bin").exists()
    saved = load_file(model.path / "model.safetensors")
    assert tensors.keys() == saved.keys() and all(
        torch.equal(tensors[name], saved[name]) for name in tensors
    )


def test_a_pickle_that_is_no_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04junk")
    with pytest.raises(SourceError, match="cannot be loaded"):
        fetch(tmp_path, folder, allow_pickle=True)
    assert nothing_in(tmp_path / "store")


def test_code_is_left_out_until_its_hash_is_trusted(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling_x.py").write_text("print('hello')\n")
    result = fetch(tmp_path, folder)
    sha = result.untrusted_code["modeling_x.py"]
    assert not (result.model.path / "modeling_x.py").exists()
    assert (
        fetch(tmp_path, folder, trusted_code={"modeling_x.py": sha}).model.path / "modeling_x.py"
    ).exists()


def test_code_that_changed_since_it_was_reviewed_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling_x.py").write_text("print('hello')\n")
    with pytest.raises(SourceError, match="has sha256"):
        fetch(tmp_path, folder, trusted_code={"modeling_x.py": "0" * 64})


@pytest.mark.parametrize("names", [("a:b.json",), ("readme.md", "README.md")])
def test_a_name_that_not_every_store_can_hold_is_refused(
    folder: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        (folder / name).write_text("{}")
    with pytest.raises(SourceError, match=r"source\.exclude"):
        fetch(tmp_path, folder)
