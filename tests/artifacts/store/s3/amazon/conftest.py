"""Amazon as a machine on the internet sees it, and a store at the end of a URL that names no
endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.store.s3.store import S3Store
from tests.support.amazon import DOTTED, KEY
from tests.support.places import client_of
from tests.support.s3_amazon import HOME, Amazon, Key, in_front_of
from tests.support.s3_parts import at
from tests.support.s3_server import BUCKET, SECRET, Server

# what the machine that runs the tests may have set, and what `credentials` has set and some tests
# do without
FOREIGN = (
    "https_proxy",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "REQUESTS_CA_BUNDLE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_DEFAULT_PROFILE",
)


@pytest.fixture(scope="module")
def front(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Amazon]:
    client_of(server.url).create_bucket(Bucket=DOTTED)
    with in_front_of(server.url, tmp_path_factory.mktemp("tls"), {KEY: Key(SECRET)}) as amazon:
        yield amazon


@pytest.fixture
def amazon(front: Amazon, monkeypatch: pytest.MonkeyPatch) -> Amazon:
    """Amazon as a machine on the internet sees it that has an access key and nothing else: no
    endpoint, no region."""
    front.reset()
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", front.url)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(front.bundle))
    return front


@pytest.fixture
def keyless(amazon: Amazon, monkeypatch: pytest.MonkeyPatch) -> Amazon:
    """The same, and the environment has no access key."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    return amazon


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def store(amazon: Amazon, prefix: str) -> S3Store:
    """An empty store at the end of a URL that names its region."""
    return at(f"{prefix}?region={HOME}")
