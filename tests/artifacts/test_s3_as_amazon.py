"""The S3 store where no endpoint is named: TLS to virtual hosts of amazonaws.com, regions, and credentials from wherever Amazon has them."""

from __future__ import annotations

import functools
import json
import logging
import re
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.loaders import JSONFileLoader
from botocore.utils import ContainerMetadataFetcher

from artifacts.garbage import collect
from artifacts.manifest import ModelArtifact
from artifacts.s3 import S3Store, Tuning
from artifacts.store import LocalStore
from artifacts.stores import Problem, open_store
from configs.errors import ConfigError, LmflowsError, StaleRef, TransferError
from configs.location import parse_s3
from tests.artifacts.places import client_of
from tests.artifacts.s3_parts import CONTENT, DISTINCT, LARGE, PART, at, commit
from tests.s3_amazon import HOME, Amazon, Cut, Key, Role, document, in_front_of
from tests.s3_server import BUCKET, SECRET, Server

DOTTED = "my.models"
VIRTUAL = f"{BUCKET}.s3.{HOME}.amazonaws.com"
REGIONAL = f"s3.{HOME}.amazonaws.com"
GLOBAL = f"{BUCKET}.s3.amazonaws.com"
KEY = "test"
OTHER = Key("another-secret-that-no-message-may-show", "a-token-that-no-message-may-show")
# what the machine that runs the tests may have set, and what `credentials` has set and some tests do without
FOREIGN = ("https_proxy", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "REQUESTS_CA_BUNDLE", "AWS_REGION", "AWS_DEFAULT_REGION",
           "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN",
           "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_USE_FIPS_ENDPOINT",
           "AWS_USE_DUALSTACK_ENDPOINT", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "AWS_DEFAULT_PROFILE")


@pytest.fixture(scope="module", autouse=True)
def quick_clients() -> Iterator[None]:
    """Each store here has a client of its own, and each would parse botocore's descriptions of S3 and of all hosts anew."""
    load = functools.cache(JSONFileLoader().load_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", lambda _self, path: load(path))
        yield


@pytest.fixture(scope="module")
def front(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Amazon]:
    client_of(server.url).create_bucket(Bucket=DOTTED)
    with in_front_of(server.url, tmp_path_factory.mktemp("tls"), {KEY: Key(SECRET)}) as amazon:
        yield amazon


@pytest.fixture
def amazon(front: Amazon, monkeypatch: pytest.MonkeyPatch) -> Amazon:
    """Amazon as a machine on the internet sees it that has an access key and nothing else: no endpoint, no region."""
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


def files_of(artifact: ModelArtifact) -> dict[str, bytes]:
    return {path.relative_to(artifact.path).as_posix(): path.read_bytes() for path in artifact.path.rglob("*") if path.is_file()}


def hosts(amazon: Amazon) -> set[str]:
    """Where all went, and nothing went elsewhere."""
    found = {seen.host for seen in amazon.requests}
    assert set(amazon.tunnels) == {seen.server_name for seen in amazon.requests} == found
    return found


def tops(amazon: Amazon) -> set[str]:
    """The paths that were asked for, without the store's own keys."""
    paths = {seen.target.partition("?")[0] for seen in amazon.requests}
    return {re.sub(r"/(blobs|manifests|refs|signatures|probes|gc\.json)(/.*)?$", "", path) for path in paths}


def test_an_artifact_goes_to_the_buckets_own_host_by_tls_and_comes_back(amazon: Amazon, store: S3Store, source: LocalStore,
                                                                        target: LocalStore) -> None:
    digest = commit(source).digest
    assert store.push(source, digest) == DISTINCT
    assert store.verify(digest) == store.absent(digest) == []
    assert store.digests() == [digest]
    assert files_of(store.pull(digest, target)) == CONTENT
    store.touch(digest)
    assert hosts(amazon) == {VIRTUAL}
    assert {(seen.tls, seen.bucket, seen.key, seen.region, seen.code) for seen in amazon.requests} == {("TLSv1.3", BUCKET, KEY, HOME, None)}
    assert tops(amazon) == {"/", f"/{store.bucket.location.prefix}"}


def test_a_large_file_goes_in_parts_and_nothing_goes_twice(amazon: Amazon, store: S3Store, source: LocalStore) -> None:
    digest = commit(source).digest
    store.push(source, digest)
    parts = [seen for seen in amazon.requests if seen.method == "PUT" and "partNumber=" in seen.target]
    assert len(parts) == -(-len(LARGE) // PART)
    assert {seen.payload for seen in parts} == {"UNSIGNED-PAYLOAD"}  # its checksum is signed: no byte is hashed twice
    assert Counter(seen.method for seen in amazon.requests)["POST"] == 2  # the upload's begin and end
    amazon.requests.clear()
    assert store.push(source, digest) == 0
    assert [seen.target for seen in amazon.requests if seen.method in ("PUT", "POST") and "/blobs/" in seen.target] == []


def test_refs_are_swapped_where_conditional_writes_were_seen_to_be_kept(amazon: Amazon, store: S3Store) -> None:
    store.objects.swap("refs/m/dev.json", b"1", seen=None)
    assert 412 in {seen.status for seen in amazon.requests if seen.method == "PUT" and "/probes/" in seen.target}
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
    assert set(store.objects.keys("")) == {"gc.json"}
    assert hosts(amazon) == {VIRTUAL}


@pytest.mark.parametrize("cut", ["handshake", "request", "answer"])
def test_connections_that_end_within_tls_are_made_again(amazon: Amazon, store: S3Store, source: LocalStore, target: LocalStore, cut: Cut) -> None:
    digest = commit(source).digest
    amazon.cuts[cut] = 2
    store.push(source, digest)
    assert files_of(store.pull(digest, target)) == CONTENT
    assert amazon.cuts[cut] == 0


def test_a_connection_that_always_ends_within_tls_is_not_called_untrusted(amazon: Amazon, store: S3Store) -> None:
    amazon.cuts["handshake"] = 1000
    with pytest.raises(TransferError, match=r"connection failed.*->.*server is up"):
        store.has("0" * 64)
    assert len(amazon.tunnels) == store.bucket.tuning.attempts


# -- hosts and regions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variables", "profile"), [({"AWS_REGION": HOME}, ""), ({"AWS_DEFAULT_REGION": HOME}, ""), ({}, HOME),
                                                    ({"AWS_REGION": HOME, "AWS_DEFAULT_REGION": "us-west-2"}, "us-east-1"),
                                                    ({"AWS_REGION": "", "AWS_DEFAULT_REGION": HOME}, "us-west-2")])
def test_the_region_comes_from_the_environment_or_the_profile(amazon: Amazon, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                              variables: dict[str, str], profile: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if profile:
        (tmp_path / "config").write_text(f"[default]\nregion = {profile}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    opened = open_store(prefix)
    assert not opened.has("0" * 64)
    assert hosts(amazon) == {VIRTUAL}
    assert {seen.region for seen in amazon.requests} == {HOME}


def test_the_urls_region_goes_before_the_environments(amazon: Amazon, store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert not store.has("0" * 64)
    assert hosts(amazon) == {VIRTUAL}


@pytest.mark.parametrize(("option", "host", "status"), [("?region=us-west-2", f"{BUCKET}.s3.us-west-2.amazonaws.com", 301), ("", GLOBAL, 400)])
def test_a_bucket_elsewhere_is_found_by_one_question(amazon: Amazon, prefix: str, source: LocalStore, target: LocalStore, option: str, host: str,
                                                     status: int) -> None:
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
def test_a_bucket_elsewhere_that_does_not_say_where_is_an_error_that_names_the_remedy(amazon: Amazon, prefix: str, source: LocalStore,
                                                                                      option: str) -> None:
    amazon.tells_region = False
    wrong, digest = at(prefix + option), commit(source).digest
    for action in (lambda: wrong.has(digest), lambda: wrong.manifest(digest), lambda: wrong.push(source, digest), wrong.digests,
                   lambda: wrong.objects.swap("refs/m/dev.json", b"1", seen=None)):
        amazon.requests.clear()
        with pytest.raises(ConfigError, match=r"->.*region="):
            action()
        assert len(amazon.requests) <= 4  # what was asked and where the bucket is, and both again for clearing a probe away


@pytest.mark.parametrize("style", ["", "&path_style=false"])
def test_a_bucket_that_no_certificate_can_name_is_in_the_path(amazon: Amazon, source: LocalStore, target: LocalStore, tmp_path: Path,
                                                              style: str) -> None:
    dotted = at(f"s3://{DOTTED}/{tmp_path.name}?region={HOME}{style}")
    digest = commit(source).digest
    assert dotted.push(source, digest) == DISTINCT
    assert files_of(dotted.pull(digest, target)) == CONTENT
    dotted.touch(digest)
    assert hosts(amazon) == {REGIONAL}
    assert tops(amazon) == {f"/{DOTTED}", f"/{DOTTED}/{tmp_path.name}"}


def test_path_style_is_kept_to_with_amazon_too(amazon: Amazon, prefix: str, source: LocalStore) -> None:
    by_path = at(f"{prefix}?region={HOME}&path_style=true")
    by_path.push(source, commit(source).digest)
    assert hosts(amazon) == {REGIONAL}
    assert tops(amazon) == {f"/{BUCKET}", f"/{BUCKET}/{by_path.bucket.location.prefix}"}


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_an_endpoint_of_the_environment_is_addressed_by_path(server: Server, amazon: Amazon, prefix: str, source: LocalStore, target: LocalStore,
                                                             monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, server.url.replace("127.0.0.1", "localhost"))  # a host that could have others below it
    server.forget()
    here, digest = at(prefix), commit(source).digest
    here.push(source, digest)
    assert files_of(here.pull(digest, target)) == CONTENT
    assert amazon.tunnels == []
    assert [seen.path for seen in server.requests("PUT") if not seen.path.startswith(f"/{BUCKET}/{prefix.rpartition('/')[2]}/")] == []
    assert server.requests("PUT")


# -- trust ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bundle", [None, "", "no-such-file", "no certificates"])
def test_a_certificate_that_is_not_trusted_is_an_error_that_names_the_remedy(amazon: Amazon, prefix: str, tmp_path: Path,
                                                                             monkeypatch: pytest.MonkeyPatch, bundle: str | None) -> None:
    (tmp_path / "no certificates").write_text("text")
    if bundle is None:
        monkeypatch.delenv("AWS_CA_BUNDLE")
    else:
        monkeypatch.setenv("AWS_CA_BUNDLE", bundle and str(tmp_path / bundle))
    tuning = Tuning()
    with pytest.raises(ConfigError, match="AWS_CA_BUNDLE" if bundle == "" else r"no trusted TLS connection.*->.*AWS_CA_BUNDLE"):
        S3Store(parse_s3(f"{prefix}?region={HOME}"), tuning).has("0" * 64)
    assert len(amazon.tunnels) <= tuning.requests  # botocore's tries, and none of ours on top
    assert amazon.requests == []


def test_a_trusted_certificate_of_another_host_is_not_enough(amazon: Amazon, prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"no trusted TLS connection.*doesn't match|no trusted TLS connection.*[Hh]ostname mismatch"):
        at(f"{prefix}?region=ap-south-1").has("0" * 64)
    assert amazon.tunnels == [f"{BUCKET}.s3.ap-south-1.amazonaws.com"]


# -- credentials ---------------------------------------------------------------------------------------------------


def use_files(monkeypatch: pytest.MonkeyPatch, folder: Path, config: str, shared: str = "") -> None:
    for variable, name, text in (("AWS_CONFIG_FILE", "config", config), ("AWS_SHARED_CREDENTIALS_FILE", "credentials", shared)):
        (folder / name).write_text(text)
        monkeypatch.setenv(variable, str(folder / name))


def test_a_profile_has_credentials_and_region(keyless: Amazon, prefix: str, source: LocalStore, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    keyless.keys["PROFILE"] = OTHER
    use_files(monkeypatch, tmp_path, f"[profile train]\nregion = {HOME}\n",
              f"[default]\naws_access_key_id = nobody\naws_secret_access_key = none\n"
              f"[train]\naws_access_key_id = PROFILE\naws_secret_access_key = {OTHER.secret}\naws_session_token = {OTHER.token}\n")
    monkeypatch.setenv("AWS_PROFILE", "train")
    at(prefix).push(source, commit(source).digest)
    assert hosts(keyless) == {VIRTUAL}
    assert {(seen.key, seen.region, seen.code) for seen in keyless.requests} == {("PROFILE", HOME, None)}


def test_a_process_gives_credentials_and_is_asked_again_before_they_expire(keyless: Amazon, store: S3Store, source: LocalStore, target: LocalStore,
                                                                           tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "given.json"
    use_files(monkeypatch, tmp_path, f"[default]\ncredential_process = cat {given}\n")
    keyless.keys |= {"FIRST": OTHER, "SECOND": Key("second", "token")}
    given.write_text(document("FIRST", OTHER, 5, token="SessionToken"))
    digest = commit(source).digest
    store.push(source, digest)
    assert {seen.key for seen in keyless.requests} == {"FIRST"}
    keyless.requests.clear()
    keyless.keys["FIRST"] = Key(OTHER.secret, OTHER.token, expired=True)
    given.write_text(document("SECOND", keyless.keys["SECOND"], 5, token="SessionToken"))
    assert files_of(store.pull(digest, target)) == CONTENT
    assert {(seen.key, seen.code) for seen in keyless.requests} == {("SECOND", None)}


@pytest.mark.parametrize(("process", "says"), [("no-such-program", "no-such-program.*credential_process"), ("echo junk", "credential_process"),
                                               ("false", "no usable AWS credentials"), ("echo {}", "no usable AWS credentials.*Version"),
                                               ("cat expired.json", "no usable AWS credentials.*still expired")])
def test_a_process_without_credentials_is_an_error_that_names_it(keyless: Amazon, store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                 process: str, says: str) -> None:
    (tmp_path / "expired.json").write_text(document("EXPIRED", OTHER, -5, token="SessionToken"))
    monkeypatch.chdir(tmp_path)
    use_files(monkeypatch, tmp_path, f"[default]\ncredential_process = {process}\n")
    with pytest.raises(ConfigError, match=says) as error:
        store.has("0" * 64)
    assert "\n" not in str(error.value)
    assert keyless.requests == []


@pytest.fixture
def role(keyless: Amazon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Role]:
    """A container's endpoint is where credentials come from."""
    role = Role(keyless, "a-password-that-no-message-may-show")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.url)
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", role.password)
    monkeypatch.setattr(ContainerMetadataFetcher, "SLEEP_TIME", 0.01)
    yield role
    role.close()


def test_a_containers_credentials_are_renewed_in_the_middle_of_a_push(keyless: Amazon, role: Role, store: S3Store, source: LocalStore,
                                                                      target: LocalStore) -> None:
    digest = commit(source).digest
    store.push(source, digest)
    used = {seen.key for seen in keyless.requests if "partNumber=" in seen.target}
    assert len(used) > 1
    assert used < role.keys.keys()
    assert files_of(store.pull(digest, target)) == CONTENT
    assert {seen.code for seen in keyless.requests} == {None}


def test_a_container_whose_endpoint_goes_away_is_an_error(keyless: Amazon, role: Role, store: S3Store, source: LocalStore) -> None:
    digest = commit(source).digest
    store.push(source, digest)
    role.down = True
    with pytest.raises(ConfigError, match=r"no usable AWS credentials.*->") as error:
        store.push(source, digest)
    require_no_secret(error.value, role.password, *(word for key in role.keys.values() for word in (key.secret, key.token)))


@pytest.mark.parametrize(("there", "says"), [({}, "InvalidAccessKeyId.*renew or correct"), ({KEY: OTHER}, "InvalidToken.*renew or correct"),
                                             ({KEY: Key("another")}, "SignatureDoesNotMatch.*renew or correct"),
                                             ({KEY: Key(SECRET, expired=True)}, "ExpiredToken.*renew or correct")])
def test_credentials_that_amazon_refuses_are_an_error_that_says_so(amazon: Amazon, store: S3Store, source: LocalStore, there: dict[str, Key],
                                                                   says: str) -> None:
    amazon.keys = there
    with pytest.raises(ConfigError, match=says):
        store.push(source, commit(source).digest)
    assert len(amazon.requests) == 1


def test_credentials_that_have_expired_are_named_where_the_answer_has_no_words(amazon: Amazon, store: S3Store) -> None:
    amazon.keys[KEY] = Key(SECRET, expired=True)
    with pytest.raises(ConfigError, match=r"400.*->.*expired.*renew"):
        store.has("0" * 64)


# -- secrets -------------------------------------------------------------------------------------------------------


def require_no_secret(error: LmflowsError, *secrets: str | None) -> None:
    """Neither in what is said, nor in what it comes from."""
    said = "".join([*traceback.format_exception(error), json.dumps(error.to_dict()), repr(error)])
    assert [secret for secret in (SECRET, OTHER.secret, OTHER.token, "AWS4-HMAC", *secrets) if secret and secret in said] == []


def test_no_secret_in_messages_logs_and_names(keyless: Amazon, store: S3Store, source: LocalStore, tmp_path: Path, free_port: int,
                                              monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    given = tmp_path / "given.json"
    use_files(monkeypatch, tmp_path, f"[default]\ncredential_process = cat {given}\n")
    given.write_text(document(KEY, OTHER, 60, token="SessionToken"))
    digest = commit(source).digest

    def failure(store: S3Store) -> LmflowsError:
        with pytest.raises(LmflowsError) as error:
            store.push(source, digest)
        require_no_secret(error.value, "password")
        return error.value

    location = f"{store.location}"
    for there in ({}, {KEY: Key(SECRET, OTHER.token)}, {KEY: Key(OTHER.secret)}, {KEY: Key(OTHER.secret, OTHER.token, expired=True)}):
        keyless.keys = there
        assert "refuses the credentials" in str(failure(at(location)))
    keyless.keys = {KEY: OTHER}
    assert "no such bucket" in str(failure(at(f"s3://no-such-bucket/a?region={HOME}")))
    store.push(source, digest)
    assert store.verify(digest) == list[Problem]()
    given.write_text(given.read_text().replace("AccessKeyId", "Key"))
    assert "no usable AWS credentials" in str(failure(at(location)))
    given.write_text(given.read_text()[1:])
    assert "no client can be made" in str(failure(at(location)))
    given.write_text(document(KEY, OTHER, 60, token="SessionToken"))
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:password@127.0.0.1:{free_port}")
    assert "proxy" in str(failure(at(location)))
    require_no_secret(LmflowsError(repr([store, store.objects, store.bucket, store.bucket.location, store.bucket.tuning, store.location])))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("artifacts", "configs", "flows"))]
    assert [line for line in ours if OTHER.secret in line or str(OTHER.token) in line] == []
