"""Pushing and pulling through a proxy that breaks what it carries: each ends whole and verified, or
with a clear error and nothing visible."""

# covers artifacts/store/s3/client.py
# covers artifacts/store/s3/download.py
# covers artifacts/store/s3/ranges.py
# covers artifacts/store/s3/team.py

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.manifest import ModelArtifact
from artifacts.store.local import LocalStore
from artifacts.store.s3.store import S3Store
from configs.errors import ArtifactDamaged, LmflowsError, TransferError
from configs.location import parse_s3
from tests.support.faulty_proxy import Fault, FaultyProxy, Kind, in_front_of
from tests.support.rounds import rounds
from tests.support.s3_parts import commit
from tests.support.s3_server import BUCKET, SMALL, Server, credentials, running

PART = SMALL.part_bytes
DICE = random.Random(0)
CONTENT = {
    "config.json": b"{}",
    "empty": b"",
    "weights/large": DICE.randbytes(4 * PART + 999),
    **{f"weights/{number}": DICE.randbytes(30_000 + number) for number in range(4)},
}
TIRED = replace(SMALL, attempts=2)  # gives up early
BROKEN: list[tuple[Kind, int, str]] = [
    ("status", 500, "InternalError"),
    ("status", 503, "SlowDown"),
    ("reset upload", 0, ""),
    ("cut upload", 0, ""),
    ("flip upload", 0, ""),
    ("reset download", 0, ""),
    ("cut download", 0, ""),
    ("flip download", 0, ""),
    ("lose answer", 0, ""),
    ("flip upload, lose answer", 0, ""),
]
UPLOADS = [fault for fault in BROKEN if "download" not in fault[0]]
DOWNLOADS = [fault for fault in BROKEN if "upload" not in fault[0]]


@pytest.fixture(scope="module", params=["checks", "checks nothing"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One that checks what it gets, as AWS does; and one that stores whatever arrives."""
    with credentials(), running(checksums=request.param == "checks", smallest_part=1) as server:
        yield server


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultyProxy]:
    with in_front_of(server.url) as proxy:
        yield proxy


@pytest.fixture
def artifact(source: LocalStore) -> ModelArtifact:
    return commit(source, CONTENT)


@pytest.fixture
def plain(server: Server, tmp_path: Path) -> S3Store:
    """The store without the proxy."""
    return S3Store(parse_s3(server.location(tmp_path.name)), SMALL)


@pytest.fixture
def broken(proxy: FaultyProxy, tmp_path: Path) -> S3Store:
    """The same store through the proxy."""
    return S3Store(parse_s3(f"s3://{BUCKET}/{tmp_path.name}?endpoint_url={proxy.url}"), SMALL)


def test_the_proxy_carries_everything_when_it_is_told_nothing(
    broken: S3Store, source: LocalStore, target: LocalStore, artifact: ModelArtifact
) -> None:
    assert broken.push(source, artifact.digest) == sum(map(len, CONTENT.values()))
    broken.pull(artifact.digest, target)
    assert target.verify(artifact.digest) == broken.verify(artifact.digest) == []


@pytest.mark.parametrize(
    ("method", "what", "kind", "status", "code"),
    [
        *(
            ("PUT", what, *fault)
            for what in ("partNumber=2", "blobs/sha256/[0-9a-f]{64}$", "manifests")
            for fault in UPLOADS
        ),
        # no body there
        *(
            ("POST", what, *fault)
            for what in (r"uploads$", r"uploadId=[^&]*$")
            for fault in UPLOADS
            if "upload" not in fault[0]
        ),
    ],
)
def test_a_push_survives(
    method: str,
    what: str,
    kind: Kind,
    status: int,
    code: str,
    proxy: FaultyProxy,
    broken: S3Store,
    plain: S3Store,
    source: LocalStore,
    artifact: ModelArtifact,
) -> None:
    proxy.faults = [Fault(kind, method, what, times=2, status=status, code=code)]
    broken.push(source, artifact.digest)
    assert proxy.faults[0].hits
    assert plain.verify(artifact.digest) == []


@pytest.mark.parametrize("kind", ["reset download", "cut download"])
def test_an_answer_that_is_an_error_may_break_off_too(
    kind: Kind,
    proxy: FaultyProxy,
    broken: S3Store,
    plain: S3Store,
    source: LocalStore,
    artifact: ModelArtifact,
) -> None:
    """The lease of a garbage collection is asked for and mostly is not there: a 404 with a body."""
    proxy.faults = [Fault(kind, "GET", r"gc\.json", times=2)]
    broken.push(source, artifact.digest)
    assert proxy.faults[0].hits == 2
    assert plain.verify(artifact.digest) == []


@pytest.mark.parametrize(("kind", "status", "code"), DOWNLOADS)
def test_a_pull_survives(
    kind: Kind,
    status: int,
    code: str,
    proxy: FaultyProxy,
    broken: S3Store,
    plain: S3Store,
    source: LocalStore,
    target: LocalStore,
    artifact: ModelArtifact,
) -> None:
    plain.push(source, artifact.digest)
    times = 1 if kind == "flip download" else 4
    proxy.faults = [
        Fault(kind, "GET", "blobs/", times=times, status=status, code=code),
        Fault(kind, "GET", "manifests/", times=1, status=status, code=code),
    ]
    broken.pull(artifact.digest, target)
    assert [fault.hits for fault in proxy.faults] == [times, 1]
    assert target.verify(artifact.digest) == []


@pytest.mark.parametrize(("kind", "status", "code"), UPLOADS)
def test_a_push_that_fails_for_good_says_so_and_shows_nothing(
    kind: Kind,
    status: int,
    code: str,
    proxy: FaultyProxy,
    broken: S3Store,
    plain: S3Store,
    source: LocalStore,
    artifact: ModelArtifact,
) -> None:
    broken.bucket.tuning = TIRED
    proxy.faults = [Fault(kind, "PUT", "partNumber=3", status=status, code=code)]
    with pytest.raises(TransferError, match=f"s3://{BUCKET}/.*->"):
        broken.push(source, artifact.digest)
    assert plain.digests() == []
    proxy.faults = []
    broken.push(source, artifact.digest)
    assert plain.verify(artifact.digest) == []


@pytest.mark.parametrize(("kind", "status", "code"), DOWNLOADS)
def test_a_pull_that_fails_for_good_says_so_and_shows_nothing(
    kind: Kind,
    status: int,
    code: str,
    proxy: FaultyProxy,
    broken: S3Store,
    plain: S3Store,
    source: LocalStore,
    target: LocalStore,
    artifact: ModelArtifact,
) -> None:
    plain.push(source, artifact.digest)
    broken.bucket.tuning = TIRED
    proxy.faults = [Fault(kind, "GET", "blobs/", status=status, code=code)]
    with pytest.raises(ArtifactDamaged if kind == "flip download" else TransferError, match="->"):
        broken.pull(artifact.digest, target)
    assert target.digests() == []
    assert not list((target.root / "tmp").iterdir())
    proxy.faults = []
    broken.pull(artifact.digest, target)
    assert target.verify(artifact.digest) == []


def test_files_that_have_arrived_are_not_fetched_again(
    server: Server,
    proxy: FaultyProxy,
    broken: S3Store,
    plain: S3Store,
    source: LocalStore,
    target: LocalStore,
    artifact: ModelArtifact,
) -> None:
    plain.push(source, artifact.digest)
    large = next(
        entry for entry in plain.manifest(artifact.digest).files if entry.path == "weights/large"
    )
    proxy.faults = [
        Fault("slow", "GET", large.sha256, times=1, rate=1e6),
        Fault("status", "GET", large.sha256),
    ]
    with pytest.raises(TransferError):
        broken.pull(artifact.digest, target)
    arrived = {path.name for path in (target.root / "blobs" / "sha256").iterdir()}
    assert arrived
    server.forget()
    plain.pull(artifact.digest, target)
    assert not arrived & {seen.path.rpartition("/")[2] for seen in server.requests("GET", "blobs/")}


def test_a_slow_link_is_slow_and_whole(
    proxy: FaultyProxy,
    broken: S3Store,
    source: LocalStore,
    target: LocalStore,
    artifact: ModelArtifact,
) -> None:
    proxy.faults = [Fault("slow", rate=1e6)]
    broken.push(source, artifact.digest)
    broken.pull(artifact.digest, target)
    assert target.verify(artifact.digest) == []


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(rounds(1, soak=20)))
def test_a_storm_of_all_faults_at_once(
    seed: int,
    server: Server,
    source: LocalStore,
    plain: S3Store,
    target: LocalStore,
    artifact: ModelArtifact,
    tmp_path: Path,
) -> None:
    """One request in six breaks, each in its own way. Whoever gives up shows nothing, and gets
    there by trying again."""
    faults = [Fault(kind, chance=0.02, status=status, code=code) for kind, status, code in BROKEN]
    with in_front_of(server.url, *faults, seed=seed) as proxy:
        store = S3Store(parse_s3(f"s3://{BUCKET}/{tmp_path.name}?endpoint_url={proxy.url}"), SMALL)
        for _ in range(10):
            try:
                store.push(source, artifact.digest)
                break
            except LmflowsError:
                assert plain.digests() == [] or plain.verify(artifact.digest) == []
        else:
            pytest.fail("ten pushes failed")
        assert plain.verify(artifact.digest) == []
        for _ in range(10):
            try:
                store.pull(artifact.digest, target)
                break
            except LmflowsError:
                assert target.digests() == []
        else:
            pytest.fail("ten pulls failed")
        assert target.verify(artifact.digest) == []
        assert sum(fault.hits for fault in faults) > 5


def everything(
    store: S3Store, source: LocalStore, target: LocalStore, digest: str
) -> list[Callable[[], object]]:
    """What one can do with a store, as often as one likes."""
    return [
        lambda: store.push(source, digest),
        lambda: store.pull(digest, target),
        lambda: store.verify(digest),
        store.digests,
        lambda: list(store.inventory("blobs")),
        lambda: store.clear_leftovers(older_than=0),
        lambda: store.touch(digest),
        lambda: store.objects.swap(f"refs/{uuid.uuid4().hex}", b"{}", seen=None),
        lambda: store.objects.keys("refs/"),
    ]


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(rounds(1, soak=20)))
def test_no_flipped_bit_of_an_answer_ends_in_anything_but_a_clear_error(
    seed: int,
    server: Server,
    source: LocalStore,
    plain: S3Store,
    target: LocalStore,
    artifact: ModelArtifact,
    tmp_path: Path,
) -> None:
    """Lists, dates, sizes, error codes, XML that is none: nothing that cannot be read comes out as
    a parser's error, or is believed."""
    with in_front_of(server.url, Fault("status", "PUT", "partNumber=3")) as proxy:
        store = S3Store(parse_s3(f"s3://{BUCKET}/{tmp_path.name}?endpoint_url={proxy.url}"), TIRED)
        with pytest.raises(TransferError):
            store.push(source, artifact.digest)  # there is an upload to go on with
    flips, done = Fault("flip download", chance=0.25), 0
    with in_front_of(server.url, flips, seed=seed) as proxy:
        for _ in range(8):
            store = S3Store(
                parse_s3(f"s3://{BUCKET}/{tmp_path.name}?endpoint_url={proxy.url}"), TIRED
            )
            for step in everything(store, source, target, artifact.digest):
                with suppress(LmflowsError):
                    step()
                    done += 1
    assert flips.hits > 50 and done > 20
    assert plain.digests() in ([], [artifact.digest])
    assert all(plain.verify(digest) == [] for digest in plain.digests())
    assert all(target.verify(digest) == [] for digest in target.digests())


def test_a_small_file_that_was_changed_on_the_way_is_asked_for_again(
    proxy: FaultyProxy, broken: S3Store, plain: S3Store, server: Server
) -> None:
    """A ref, a signature or a lease says by no name what it should be, so the server's checksum is
    compared."""
    plain.objects.swap("refs/model/dev", b'{"some": "entry"}', seen=None)
    proxy.faults = [Fault("flip download", "GET", "refs/", times=2)]
    keeps_checksums = plain.bucket.head("refs/model/dev").sha256 is not None  # type: ignore[union-attr]
    found = broken.objects.get("refs/model/dev")
    assert found is not None
    assert (found[0] == b'{"some": "entry"}') == keeps_checksums
    assert proxy.faults[0].hits == (2 if keeps_checksums else 1)
