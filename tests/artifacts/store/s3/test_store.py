"""The S3 store against a real server: the promises of the local store, what is sent and what is
not, and errors that name the remedy."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import artifacts.store.s3.upload as s3_upload
from artifacts.manifest import FileEntry, Manifest
from artifacts.store.local import LocalStore
from artifacts.store.protocol import Problem, Store, lineage, open_store
from artifacts.store.s3.store import S3Store, manifest_key
from artifacts.store.s3.upload import MAX_PARTS, blob_key, part_bytes
from configs.errors import ArtifactDamaged, ArtifactMissing, DiskFull, TransferError
from tests.support.faulty_proxy import Fault, in_front_of
from tests.support.s3_parts import CONTENT, DISTINCT, LARGE, PART, at, commit, files_of
from tests.support.s3_server import BUCKET, Server, credentials, running


@pytest.fixture(params=["folder", "s3"])
def remote(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Store:
    return (
        LocalStore(tmp_path / "remote")
        if request.param == "folder"
        else at(server.location(tmp_path.name))
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def overwrite(store: Store, name: str, data: bytes | None, what: str = "blobs") -> None:
    """What stands in a store in place of a blob or a manifest; None removes it."""
    if isinstance(store, LocalStore):
        path = store.blob(name) if what == "blobs" else store.manifest_path(name)
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        return
    assert isinstance(store, S3Store)
    bucket = store.bucket
    key = bucket.key(blob_key(name) if what == "blobs" else manifest_key(name))
    if data is None:
        bucket.client.delete_object(Bucket=bucket.name, Key=key)
    else:
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=data)


def nothing_is_visible(store: Store) -> bool:
    return store.digests() == []


# -- what holds for a folder and for S3


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


# -- S3's own


def test_a_location_opens_an_s3_store(server: Server, s3: S3Store, source: LocalStore) -> None:
    opened = open_store(s3.location)
    assert isinstance(opened, S3Store)
    assert opened.location == s3.location
    opened.push(source, commit(source).digest)
    assert lineage(s3, s3.digests()) == s3.digests()


def test_the_layout_is_the_local_stores(server: Server, s3: S3Store, source: LocalStore) -> None:
    digest = commit(source).digest
    s3.push(source, digest)
    here = {
        path.relative_to(source.root).as_posix()
        for part in ("blobs", "manifests")
        for path in (source.root / part).rglob("*")
        if path.is_file()
    }
    assert {item.key for item in s3.bucket.below("")} == here


def test_a_bucket_without_a_prefix_is_a_store(
    server: Server, source: LocalStore, target: LocalStore
) -> None:
    bucket = at(server.location())
    client = bucket.bucket.client
    client.create_bucket(Bucket="whole-bucket")
    whole = at(server.location(bucket="whole-bucket"))
    digest = commit(source).digest
    whole.push(source, digest)
    assert files_of(whole.pull(digest, target)) == CONTENT


def test_nothing_is_sent_twice_and_parts_go_side_by_side(
    server: Server, source: LocalStore, tmp_path: Path
) -> None:
    digest = commit(source).digest
    with in_front_of(server.url, Fault("slow", "PUT", "partNumber", rate=2e6)) as proxy:
        store = at(f"s3://{BUCKET}/{tmp_path.name}?endpoint_url={proxy.url}")
        server.forget()
        store.push(source, digest)
        assert sum(seen.size for seen in server.requests("PUT", "blobs/")) == DISTINCT
        assert len(server.requests("PUT", query="partNumber")) == 6
        assert proxy.most_at_once > 1
        server.forget()
        store.push(source, digest)
        assert [seen.path.rpartition("/")[2] for seen in server.requests("PUT")] == [
            f"{digest}.json"
        ]


def test_an_interrupted_upload_goes_on_without_its_finished_parts(
    server: Server, source: LocalStore, tmp_path: Path
) -> None:
    digest = commit(source).digest
    with in_front_of(server.url, Fault("reset upload", "PUT", "partNumber=[56]")) as proxy:
        with pytest.raises(TransferError, match="->"):
            at(f"s3://{BUCKET}/{tmp_path.name}?endpoint_url={proxy.url}").push(source, digest)
        store = at(server.location(tmp_path.name))
        assert nothing_is_visible(store)
        finished = server.requests("PUT", sha256(LARGE), "partNumber")
        server.forget()
        store.push(source, digest)
    sent = server.requests("PUT", sha256(LARGE), "partNumber")
    assert finished
    assert sorted(seen.query.split("partNumber=")[1][0] for seen in (*finished, *sent)) == list(
        "123456"
    )
    assert sum(seen.size for seen in (*finished, *sent)) == len(LARGE)
    assert store.verify(digest) == []


def begun(store: S3Store) -> tuple[Any, dict[str, Any]]:
    """A client, and what names an upload of the large blob that somebody has begun with it."""
    client, where = (
        store.bucket.client,
        {
            "Bucket": store.bucket.name,
            "Key": store.bucket.key(blob_key(sha256(LARGE))),
        },
    )
    return client, where | {
        "UploadId": client.create_multipart_upload(Bucket=where["Bucket"], Key=where["Key"])[
            "UploadId"
        ]
    }


def test_a_part_that_somebody_else_sent_with_other_bytes_is_sent_again(
    s3: S3Store, source: LocalStore
) -> None:
    digest = commit(source).digest
    client, upload = begun(s3)
    client.upload_part(**upload, PartNumber=1, Body=flipped(LARGE[:PART]))
    client.upload_part(**upload, PartNumber=2, Body=LARGE[PART : 2 * PART])
    s3.push(source, digest)
    assert s3.verify(digest) == []


@pytest.mark.parametrize("ceph", [False, True])
def test_an_upload_that_ends_after_it_was_listed_is_no_obstacle(
    ceph: bool, source: LocalStore, tmp_path: Path
) -> None:
    """Another pusher has completed it, or a collection has ended it."""
    digest = commit(source).digest
    with running(ceph=ceph, smallest_part=1) as server:
        s3 = at(server.location(tmp_path.name))
        uploads = [begun(at(s3.location)) for _ in range(2)]

        def end(**_: object) -> None:
            if uploads:
                client, upload = uploads.pop()
                client.abort_multipart_upload(**upload)

        s3.bucket.client.meta.events.register("before-send.s3.ListParts", end)
        s3.push(source, digest)
        assert not uploads and s3.verify(digest) == []


@pytest.mark.parametrize("ceph", [False, True])
def test_an_upload_that_was_begun_with_smaller_parts_is_no_obstacle(
    ceph: bool, source: LocalStore, tmp_path: Path
) -> None:
    digest = commit(source).digest
    with running(ceph=ceph, smallest_part=1) as server:
        s3 = at(server.location(tmp_path.name))
        client, upload = begun(s3)
        for number in range(1, 10):
            client.upload_part(**upload, PartNumber=number, Body=b"small")
        s3.push(source, digest)
        assert s3.verify(digest) == []
        assert s3.clear_leftovers(older_than=time.time() + 60) == 1


def test_an_upload_that_is_aborted_under_our_hands_starts_anew(
    server: Server, source: LocalStore, tmp_path: Path
) -> None:
    digest = commit(source).digest
    with in_front_of(server.url, Fault("slow", "PUT", "partNumber", rate=5e5)) as proxy:
        store, beside = (
            at(f"s3://{BUCKET}/{tmp_path.name}?endpoint_url={proxy.url}"),
            at(server.location(tmp_path.name)),
        )
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(store.push, source, digest)
            while not beside.clear_leftovers(older_than=time.time() + 60):
                assert not job.done(), "nothing was aborted: this test showed nothing"
            proxy.faults = []
            job.result()
    assert beside.verify(digest) == []


def test_uploads_that_nobody_goes_on_with_are_given_up(s3: S3Store) -> None:
    begun(s3)
    assert s3.clear_leftovers(older_than=time.time() - 60) == 0
    assert s3.clear_leftovers(older_than=time.time() + 60) == 1
    assert s3.clear_leftovers(older_than=time.time() + 60) == 0


def test_a_blob_that_is_collected_while_others_are_sent_is_sent_again(
    s3: S3Store, source: LocalStore
) -> None:
    small = sha256(CONTENT["weights/small"])
    s3.push(source, commit(source, {"small": CONTENT["weights/small"]}).digest)
    seen: list[float] = []

    def collect(fraction: float, _text: str) -> None:
        if not seen:
            overwrite(s3, small, None)
        seen.append(fraction)

    digest = commit(source).digest
    assert s3.push(source, digest, collect) == DISTINCT
    assert s3.verify(digest) == []
    assert seen == sorted(seen)


def test_an_old_blob_is_made_young_when_it_is_needed_again(
    s3: S3Store, source: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.push(source, commit(source).digest)
    before = {held.name: held.modified for held in s3.inventory("blobs")}
    time.sleep(1.1)
    monkeypatch.setattr(s3_upload, "YOUNG_SECONDS", 0.0)
    assert s3.push(source, commit(source).digest) == 0
    assert all(held.modified > before[held.name] for held in s3.inventory("blobs"))
    assert s3.verify(s3.digests()[0]) == []


def test_deleting_the_object_that_an_error_names_and_pushing_again_heals(
    s3: S3Store, source: LocalStore, target: LocalStore
) -> None:
    digest = commit(source).digest
    s3.push(source, digest)
    overwrite(s3, sha256(LARGE), flipped(LARGE))
    with pytest.raises(ArtifactDamaged) as error:
        s3.pull(digest, target)
    key = s3.bucket.key(blob_key(sha256(LARGE)))
    assert key in error.value.hint
    s3.bucket.client.delete_object(Bucket=s3.bucket.name, Key=key)
    s3.push(source, digest)
    assert s3.verify(digest) == []


def test_a_folder_that_has_a_file_does_not_fetch_it_again(
    server: Server, s3: S3Store, source: LocalStore, target: LocalStore
) -> None:
    s3.push(source, commit(source).digest)
    s3.pull(commit(source).digest, target)
    more = commit(source, CONTENT | {"new": b"new"}).digest
    s3.push(source, more)
    server.forget()
    s3.pull(more, target)
    assert [seen.path.rpartition("/")[2] for seen in server.requests("GET", "blobs/")] == [
        sha256(b"new")
    ]


def test_a_pull_that_cannot_fit_is_refused_before_anything_is_fetched(
    server: Server, s3: S3Store, target: LocalStore
) -> None:
    manifest = Manifest(
        kind="fp16", files=(FileEntry(path="weights", size=1 << 44, sha256="0" * 64),)
    )
    s3._put_manifest(manifest.digest, manifest.to_bytes())
    with pytest.raises(DiskFull, match=r"GB are to be fetched.*->"):
        s3.pull(manifest.digest, target)
    assert server.requests("GET", "blobs/") == []


@pytest.mark.parametrize(
    "kind",
    [
        {"checksums": False},
        {"opaque_etags": True},
        {"checksums": False, "opaque_etags": True},
        {"conditions": False},
    ],
)
def test_servers_that_know_less_hold_artifacts_all_the_same(
    kind: dict[str, bool], source: LocalStore, target: LocalStore
) -> None:
    digest = commit(source).digest
    with credentials(), running(**kind, smallest_part=1) as server:  # type: ignore[arg-type]
        store = at(server.location("a"))
        store.push(source, digest)
        read_back = {
            seen.path.rpartition("/")[2]
            for seen in server.requests("GET", "blobs/sha256/")
            if "upload" not in seen.query
        }
        proves_nothing = kind == {"checksums": False, "opaque_etags": True}
        assert read_back == (
            {sha256(data) for data in CONTENT.values() if data} if proves_nothing else set()
        )
        assert store.push(source, digest) == 0
        assert files_of(store.pull(digest, target)) == CONTENT
        overwrite(store, sha256(LARGE), flipped(LARGE))
        assert store.verify(digest) == [Problem("changed", "weights/large")]


@pytest.mark.parametrize(
    "size",
    [
        0,
        1,
        16 << 20,
        (16 << 20) * MAX_PARTS,
        (16 << 20) * MAX_PARTS + 1,
        5 << 40,
        50_000_000_000_000,
    ],
)
def test_no_file_has_more_than_ten_thousand_parts(size: int) -> None:
    part = part_bytes(size, 16 << 20)
    assert part >= 16 << 20
    assert part <= 5 << 30
    assert -(-size // part) <= MAX_PARTS


def test_parts_too_large_for_memory_are_sent_from_the_file(
    s3: S3Store, source: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_upload, "MAX_IN_MEMORY", PART // 2)
    monkeypatch.setattr(s3_upload, "CHUNK", 10_000)
    digest = commit(source).digest
    s3.push(source, digest)
    assert s3.verify(digest) == []
