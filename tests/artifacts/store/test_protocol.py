"""What holds for a store in a folder and on S3 alike."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from artifacts.store.local import LocalStore
from artifacts.store.protocol import Problem, Store
from configs.errors import ArtifactDamaged, ArtifactMissing
from tests.support.s3_parts import (
    CONTENT,
    DISTINCT,
    LARGE,
    at,
    commit,
    files_of,
    flipped,
    nothing_is_visible,
    overwrite,
    sha256,
)
from tests.support.s3_server import Server


@pytest.fixture(params=["folder", "s3"])
def remote(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Store:
    return (
        LocalStore(tmp_path / "remote")
        if request.param == "folder"
        else at(server.location(tmp_path.name))
    )


def test_what_is_pushed_is_pulled_and_verified(
    remote: Store, source: LocalStore, target: LocalStore
) -> None:
    digest = commit(source).digest
    assert not remote.has(digest)
    # a folder counts equal files once for each name
    assert remote.push(source, digest) == pytest.approx(DISTINCT, abs=2)
    assert remote.has(digest)
    assert remote.digests() == [digest]
    assert remote.manifest(digest) == source.manifest(digest)
    assert remote.verify(digest) == remote.absent(digest) == []
    assert remote.read(digest, "config.json") == b"{}"
    assert files_of(remote.pull(digest, target)) == CONTENT
    assert target.verify(digest) == []
    assert list((target.root / "tmp").iterdir()) == []


def test_what_is_there_is_not_sent_again(remote: Store, source: LocalStore) -> None:
    remote.push(source, commit(source).digest)
    assert remote.push(source, commit(source).digest) == 0
    assert remote.push(source, commit(source, CONTENT | {"new": b"new"}).digest) == 3


@pytest.mark.parametrize("name", ["weights/large", "weights/small", "config.json"])
def test_a_flipped_byte_is_found_by_verify_and_refused_by_pull(
    remote: Store, source: LocalStore, target: LocalStore, name: str
) -> None:
    digest = commit(source).digest
    remote.push(source, digest)
    overwrite(remote, sha256(CONTENT[name]), flipped(CONTENT[name]))
    same = [other for other in CONTENT if CONTENT[other] == CONTENT[name]]
    assert remote.verify(digest) == [Problem("changed", other) for other in same]
    with pytest.raises(ArtifactDamaged, match=f"changed: {same[0]}"):
        remote.pull(digest, target)
    assert nothing_is_visible(target)
    with pytest.raises(ArtifactDamaged, match="changed"):
        remote.read(digest, name)


@pytest.mark.parametrize("name", ["weights/large", "empty"])
def test_a_missing_blob_is_found_and_refused(
    remote: Store, source: LocalStore, target: LocalStore, name: str
) -> None:
    digest = commit(source).digest
    remote.push(source, digest)
    overwrite(remote, sha256(CONTENT[name]), None)
    assert remote.absent(digest) == [Problem("missing", name)]
    assert [problem.what for problem in remote.verify(digest)] == ["missing"]
    with pytest.raises(ArtifactDamaged, match=f"missing: {name}"):
        remote.pull(digest, target)
    assert nothing_is_visible(target)


@pytest.mark.parametrize("data", [LARGE[:-1], LARGE + b"x", b""])
def test_a_push_heals_a_blob_of_the_wrong_size(
    remote: Store, source: LocalStore, data: bytes
) -> None:
    digest = commit(source).digest
    remote.push(source, digest)
    overwrite(remote, sha256(LARGE), data)
    assert [problem.what for problem in remote.absent(digest)] == ["changed"]
    assert "changed" in {problem.what for problem in remote.verify(digest)}
    assert remote.push(source, digest) == len(LARGE)
    assert remote.absent(digest) == []


@pytest.mark.parametrize("name", ["weights/large", "weights/small"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_artifact_is_not_pushed(
    remote: Store, source: LocalStore, name: str, damage: str
) -> None:
    digest = commit(source).digest
    overwrite(
        source, sha256(CONTENT[name]), flipped(CONTENT[name]) if damage == "changed" else None
    )
    with pytest.raises(ArtifactDamaged, match=f"{damage}: {name}"):
        remote.push(source, digest)
    assert nothing_is_visible(remote)
    assert sha256(CONTENT[name]) not in {held.name for held in remote.inventory("blobs")}


def test_a_manifest_that_was_tampered_with_is_refused_and_healed_by_a_push(
    remote: Store, source: LocalStore, target: LocalStore
) -> None:
    digest = commit(source).digest
    remote.push(source, digest)
    overwrite(
        remote, digest, source.manifest(digest).to_bytes().replace(b"fp16", b"w4a16"), "manifests"
    )
    with pytest.raises(ArtifactDamaged, match="does not hash to its name"):
        remote.manifest(digest)
    with pytest.raises(ArtifactDamaged):
        remote.pull(digest, target)
    remote.push(source, digest)
    assert remote.manifest(digest) == source.manifest(digest)


def test_what_is_unknown_is_missing(remote: Store, source: LocalStore, target: LocalStore) -> None:
    with pytest.raises(ArtifactMissing):
        remote.manifest("0" * 64)
    with pytest.raises(ArtifactMissing):
        remote.pull("0" * 64, target)
    digest = commit(source).digest
    remote.push(source, digest)
    with pytest.raises(ArtifactMissing, match="has no file nothing"):
        remote.read(digest, "nothing")


def test_what_is_young_is_not_discarded(remote: Store, source: LocalStore) -> None:
    digest = commit(source).digest
    remote.push(source, digest)
    held = {held.name: held for held in remote.inventory("blobs")}
    assert {name: held[name].size for name in held} == {
        sha256(data): len(data) for data in CONTENT.values()
    }
    large = held[sha256(LARGE)]
    assert not remote.discard("blobs", large.name, unless_after=large.modified - 5)
    assert remote.discard("blobs", large.name, unless_after=large.modified + 5)
    assert remote.absent(digest) == [Problem("missing", "weights/large")]
    assert remote.discard("manifests", digest, unless_after=time.time() + 60)
    assert nothing_is_visible(remote)


def test_touching_makes_young(remote: Store, source: LocalStore) -> None:
    digest = commit(source).digest
    remote.push(source, digest)
    time.sleep(1.1)  # times are whole seconds
    between = time.time() - 0.05
    remote.touch(digest)
    assert all(
        held.modified >= between - 1
        for what in ("blobs", "manifests")
        for held in remote.inventory(what)
    )
    assert not remote.discard("manifests", digest, unless_after=between - 1)
    assert remote.verify(digest) == []


def test_two_who_push_the_same_at_once_both_succeed(remote: Store, source: LocalStore) -> None:
    digest = commit(source).digest
    with ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(remote.push, source, digest) for _ in range(4)]:
            job.result()
    assert remote.verify(digest) == []
