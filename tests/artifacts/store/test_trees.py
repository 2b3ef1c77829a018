"""The folder view of an artifact is rebuilt from its blobs."""

from __future__ import annotations

import shutil

import pytest

from artifacts.store.local import LocalStore
from configs.errors import ArtifactDamaged
from tests.support.local_parts import blob_of, commit, tmp_of


def test_a_gone_tree_is_rebuilt(store: LocalStore) -> None:
    artifact = commit(store)
    shutil.rmtree(artifact.path)
    assert store.verify(artifact.digest) == []
    assert (store.open(artifact.digest).path / "config.json").read_bytes() == b"{}"


def test_a_tree_that_cannot_be_rebuilt_names_the_missing_file_and_leaves_nothing(
    store: LocalStore,
) -> None:
    artifact = commit(store)
    shutil.rmtree(artifact.path)
    blob_of(store, "weights/a.safetensors").unlink()
    with pytest.raises(ArtifactDamaged, match=r"missing: weights/a\.safetensors"):
        store.open(artifact.digest)
    assert not artifact.path.exists()
    assert tmp_of(store) == []
