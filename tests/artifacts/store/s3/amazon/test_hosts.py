"""The S3 store where no endpoint is named: TLS to virtual hosts of amazonaws.com, and regions."""

# covers artifacts/store/s3/connection.py

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from artifacts.registry.garbage import collect
from artifacts.store.local import LocalStore
from artifacts.store.open import open_store
from artifacts.store.s3.connection import Tuning
from artifacts.store.s3.store import S3Store
from configs.errors import ConfigError, StaleRef, TransferError
from configs.location import parse_s3
from tests.support.amazon import DOTTED, GLOBAL, KEY, REGIONAL, VIRTUAL, hosts, tops
from tests.support.s3_amazon import HOME, Amazon, Cut
from tests.support.s3_parts import CONTENT, DISTINCT, LARGE, PART, at, commit, files_of
from tests.support.s3_server import BUCKET, Server


def test_an_artifact_goes_to_the_buckets_own_host_by_tls_and_comes_back(
    amazon: Amazon, store: S3Store, source: LocalStore, target: LocalStore
) -> None:
    digest = commit(source).digest
    assert store.push(source, digest) == DISTINCT
    assert store.verify(digest) == store.absent(digest) == []
    assert store.digests() == [digest]
    assert files_of(store.pull(digest, target)) == CONTENT
    store.touch(digest)
    assert hosts(amazon) == {VIRTUAL}
    assert {
        (seen.tls, seen.bucket, seen.key, seen.region, seen.code) for seen in amazon.requests
    } == {("TLSv1.3", BUCKET, KEY, HOME, None)}
    assert tops(amazon) == {"/", f"/{store.bucket.location.prefix}"}


def test_a_large_file_goes_in_parts_and_nothing_goes_twice(
    amazon: Amazon, store: S3Store, source: LocalStore
) -> None:
    digest = commit(source).digest
    store.push(source, digest)
    parts = [
        seen for seen in amazon.requests if seen.method == "PUT" and "partNumber=" in seen.target
    ]
    assert len(parts) == -(-len(LARGE) // PART)
    # its checksum is signed: no byte is hashed twice
    assert {seen.payload for seen in parts} == {"UNSIGNED-PAYLOAD"}
    # the upload's begin and end
    assert Counter(seen.method for seen in amazon.requests)["POST"] == 2
    amazon.requests.clear()
    assert store.push(source, digest) == 0
    assert [
        seen.target
        for seen in amazon.requests
        if seen.method in ("PUT", "POST") and "/blobs/" in seen.target
    ] == []


def test_refs_are_swapped_where_conditional_writes_were_seen_to_be_kept(
    amazon: Amazon, store: S3Store
) -> None:
    store.objects.swap("refs/m/dev.json", b"1", seen=None)
    assert 412 in {
        seen.status
        for seen in amazon.requests
        if seen.method == "PUT" and "/probes/" in seen.target
    }
    with pytest.raises(StaleRef):
        store.objects.swap("refs/m/dev.json", b"2", seen=None)
    found = store.objects.get("refs/m/dev.json")
    assert found is not None
    store.objects.swap("refs/m/dev.json", b"2", seen=found[1])
    with pytest.raises(StaleRef):
        store.objects.swap("refs/m/dev.json", b"3", seen=found[1])
    assert (store.objects.get("refs/m/dev.json") or ("",))[0] == b"2"
    assert hosts(amazon) == {VIRTUAL}


def test_garbage_is_collected(amazon: Amazon, store: S3Store, source: LocalStore) -> None:
    store.push(source, commit(source).digest)
    assert collect(store, keep_history=1, min_age_hours=1).manifests == 0
    done = collect(store, keep_history=1, min_age_hours=1, now=time.time() + 1e6)
    assert (done.manifests, done.blobs) == (1, len(set(CONTENT.values())))
    assert {item.key for item in store.bucket.below("")} == {"gc.json"}
    assert hosts(amazon) == {VIRTUAL}


@pytest.mark.parametrize("cut", ["handshake", "request", "answer"])
def test_connections_that_end_within_tls_are_made_again(
    amazon: Amazon, store: S3Store, source: LocalStore, target: LocalStore, cut: Cut
) -> None:
    digest = commit(source).digest
    amazon.cuts[cut] = 2
    store.push(source, digest)
    assert files_of(store.pull(digest, target)) == CONTENT
    assert amazon.cuts[cut] == 0


def test_a_connection_that_always_ends_within_tls_is_not_called_untrusted(
    amazon: Amazon, store: S3Store
) -> None:
    amazon.cuts["handshake"] = 1000
    with pytest.raises(TransferError, match=r"connection failed.*->.*server is up"):
        store.has("0" * 64)
    assert len(amazon.tunnels) == store.bucket.tuning.attempts


# -- hosts and regions


@pytest.mark.parametrize(
    ("variables", "profile"),
    [
        ({"AWS_REGION": HOME}, ""),
        ({"AWS_DEFAULT_REGION": HOME}, ""),
        ({}, HOME),
        ({"AWS_REGION": HOME, "AWS_DEFAULT_REGION": "us-west-2"}, "us-east-1"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": HOME}, "us-west-2"),
    ],
)
def test_the_region_comes_from_the_environment_or_the_profile(
    amazon: Amazon,
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    profile: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if profile:
        (tmp_path / "config").write_text(f"[default]\nregion = {profile}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    opened = open_store(prefix)
    assert not opened.has("0" * 64)
    assert hosts(amazon) == {VIRTUAL}
    assert {seen.region for seen in amazon.requests} == {HOME}


def test_the_urls_region_goes_before_the_environments(
    amazon: Amazon, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert not store.has("0" * 64)
    assert hosts(amazon) == {VIRTUAL}


@pytest.mark.parametrize(
    ("option", "host", "status"),
    [("?region=us-west-2", f"{BUCKET}.s3.us-west-2.amazonaws.com", 301), ("", GLOBAL, 400)],
)
def test_a_bucket_elsewhere_is_found_by_one_question(
    amazon: Amazon,
    prefix: str,
    source: LocalStore,
    target: LocalStore,
    option: str,
    host: str,
    status: int,
) -> None:
    wrong = at(prefix + option)
    wrong.objects.swap("refs/m/dev.json", b"1", seen=None)
    digest = commit(source).digest
    assert wrong.push(source, digest) == DISTINCT
    assert files_of(wrong.pull(digest, target)) == CONTENT
    assert [(seen.host, seen.status) for seen in amazon.requests if seen.code] == [(host, status)]
    assert hosts(amazon) == {host, VIRTUAL}
    asked = at(prefix + option)  # the first question is a HEAD, which is answered without words
    assert asked.has(digest)


@pytest.mark.parametrize("option", ["?region=us-west-2", ""])
def test_a_bucket_elsewhere_that_does_not_say_where_is_an_error_that_names_the_remedy(
    amazon: Amazon, prefix: str, source: LocalStore, option: str
) -> None:
    amazon.tells_region = False
    wrong, digest = at(prefix + option), commit(source).digest
    for action in (
        lambda: wrong.has(digest),
        lambda: wrong.manifest(digest),
        lambda: wrong.push(source, digest),
        wrong.digests,
        lambda: wrong.objects.swap("refs/m/dev.json", b"1", seen=None),
    ):
        amazon.requests.clear()
        with pytest.raises(ConfigError, match=r"->.*region="):
            action()
        # what was asked and where the bucket is, and both again for clearing a probe away
        assert len(amazon.requests) <= 4


@pytest.mark.parametrize("style", ["", "&path_style=false"])
def test_a_bucket_that_no_certificate_can_name_is_in_the_path(
    amazon: Amazon, source: LocalStore, target: LocalStore, tmp_path: Path, style: str
) -> None:
    dotted = at(f"s3://{DOTTED}/{tmp_path.name}?region={HOME}{style}")
    digest = commit(source).digest
    assert dotted.push(source, digest) == DISTINCT
    assert files_of(dotted.pull(digest, target)) == CONTENT
    dotted.touch(digest)
    assert hosts(amazon) == {REGIONAL}
    assert tops(amazon) == {f"/{DOTTED}", f"/{DOTTED}/{tmp_path.name}"}


def test_path_style_is_kept_to_with_amazon_too(
    amazon: Amazon, prefix: str, source: LocalStore
) -> None:
    by_path = at(f"{prefix}?region={HOME}&path_style=true")
    by_path.push(source, commit(source).digest)
    assert hosts(amazon) == {REGIONAL}
    assert tops(amazon) == {f"/{BUCKET}", f"/{BUCKET}/{by_path.bucket.location.prefix}"}


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_an_endpoint_of_the_environment_is_addressed_by_path(
    server: Server,
    amazon: Amazon,
    prefix: str,
    source: LocalStore,
    target: LocalStore,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    # a host that could have others below it
    monkeypatch.setenv(name, server.url.replace("127.0.0.1", "localhost"))
    server.forget()
    here, digest = at(prefix), commit(source).digest
    here.push(source, digest)
    assert files_of(here.pull(digest, target)) == CONTENT
    assert amazon.tunnels == []
    assert [
        seen.path
        for seen in server.requests("PUT")
        if not seen.path.startswith(f"/{BUCKET}/{prefix.rpartition('/')[2]}/")
    ] == []
    assert server.requests("PUT")


# -- trust


@pytest.mark.parametrize("bundle", [None, "", "no-such-file", "no certificates"])
def test_a_certificate_that_is_not_trusted_is_an_error_that_names_the_remedy(
    amazon: Amazon, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: str | None
) -> None:
    (tmp_path / "no certificates").write_text("text")
    if bundle is None:
        monkeypatch.delenv("AWS_CA_BUNDLE")
    else:
        monkeypatch.setenv("AWS_CA_BUNDLE", bundle and str(tmp_path / bundle))
    tuning = Tuning()
    with pytest.raises(
        ConfigError,
        match="AWS_CA_BUNDLE" if bundle == "" else r"no trusted TLS connection.*->.*AWS_CA_BUNDLE",
    ):
        S3Store(parse_s3(f"{prefix}?region={HOME}"), tuning).has("0" * 64)
    assert len(amazon.tunnels) <= tuning.requests  # botocore's tries, and none of ours on top
    assert amazon.requests == []


def test_a_trusted_certificate_of_another_host_is_not_enough(amazon: Amazon, prefix: str) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"no trusted TLS connection.*doesn't match|no trusted TLS connection.*[Hh]ostname"
            r" mismatch"
        ),
    ):
        at(f"{prefix}?region=ap-south-1").has("0" * 64)
    assert amazon.tunnels == [f"{BUCKET}.s3.ap-south-1.amazonaws.com"]
