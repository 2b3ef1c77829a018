"""What the tests of files and stores share: a second file system, folders to push from and pull
into, a store of each kind."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.loaders import JSONFileLoader

from artifacts.store.local import LocalStore
from artifacts.store.s3.store import S3Store
from tests.support import places, s3_server
from tests.support.s3_parts import at
from tests.support.s3_server import Server


@pytest.fixture(scope="session", autouse=True)
def quick_clients() -> Iterator[None]:
    """Each store of a test has a client of its own, and each would parse botocore's descriptions
    of S3 and of all hosts anew."""
    load = functools.cache(JSONFileLoader().load_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", lambda _self, path: load(path))
        yield


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another device than tmp_path."""
    shm = Path("/dev/shm")  # noqa: S108 (the one other file system that every Linux has)
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system to write to")
    folder = Path(tempfile.mkdtemp(dir=shm))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def source(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "source")


@pytest.fixture
def target(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "target")


@pytest.fixture(scope="module", params=["local", "s3"])
def either(request: pytest.FixtureRequest) -> Iterator[Server | None]:
    """Where `place` is: in a folder, or on a server of its own."""
    if request.param == "local":
        yield None
    else:
        with places.bucket() as running:
            yield running


@pytest.fixture
def place(either: Server | None, tmp_path: Path) -> places.Place:
    """An empty store, once of each kind."""
    return places.place(either, tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that takes small parts, with the credentials for it in the environment."""
    with s3_server.credentials(), s3_server.running(smallest_part=1) as running:
        yield running


@pytest.fixture
def s3(server: Server, tmp_path: Path) -> S3Store:
    """An empty store there; what the server has heard before is forgotten."""
    server.forget()
    return at(server.location(tmp_path.name))
