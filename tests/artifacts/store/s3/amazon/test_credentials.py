"""Credentials from wherever Amazon has them; they expire, are renewed, are refused or cannot be
had, and are never told."""

# covers artifacts/store/s3/connection.py
# covers artifacts/store/s3/errors.py

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.utils import ContainerMetadataFetcher

from artifacts.store.local import LocalStore
from artifacts.store.protocol import Problem
from artifacts.store.s3.store import S3Store
from configs.errors import ConfigError, LmflowsError, TransferError
from tests.support.amazon import KEY, OTHER, VIRTUAL, hosts
from tests.support.s3_amazon import HOME, Amazon, Key, Role, TokenService, document
from tests.support.s3_parts import CONTENT, at, commit, files_of
from tests.support.s3_server import SECRET


def use_files(monkeypatch: pytest.MonkeyPatch, folder: Path, config: str, shared: str = "") -> None:
    for variable, name, text in (
        ("AWS_CONFIG_FILE", "config", config),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", shared),
    ):
        (folder / name).write_text(text)
        monkeypatch.setenv(variable, str(folder / name))


def test_a_profile_has_credentials_and_region(
    keyless: Amazon,
    prefix: str,
    source: LocalStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keyless.keys["PROFILE"] = OTHER
    use_files(
        monkeypatch,
        tmp_path,
        f"[profile train]\nregion = {HOME}\n",
        "[default]\naws_access_key_id = nobody\naws_secret_access_key ="
        " none\n[train]\naws_access_key_id = PROFILE\naws_secret_access_key ="
        f" {OTHER.secret}\naws_session_token = {OTHER.token}\n",
    )
    monkeypatch.setenv("AWS_PROFILE", "train")
    at(prefix).push(source, commit(source).digest)
    assert hosts(keyless) == {VIRTUAL}
    assert {(seen.key, seen.region, seen.code) for seen in keyless.requests} == {
        ("PROFILE", HOME, None)
    }


def test_a_process_gives_credentials_and_is_asked_again_before_they_expire(
    keyless: Amazon,
    store: S3Store,
    source: LocalStore,
    target: LocalStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


@pytest.mark.parametrize(
    ("process", "says"),
    [
        ("no-such-program", "no-such-program"),
        ("echo junk", ""),
        ("false", ""),
        ("echo {}", "Version"),
        ("cat expired.json", "still expired"),
    ],
)
def test_a_process_without_credentials_is_an_error_that_names_it(
    keyless: Amazon,
    store: S3Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    process: str,
    says: str,
) -> None:
    (tmp_path / "expired.json").write_text(document("EXPIRED", OTHER, -5, token="SessionToken"))
    monkeypatch.chdir(tmp_path)
    use_files(monkeypatch, tmp_path, f"[default]\ncredential_process = {process}\n")
    with pytest.raises(ConfigError, match=f"no usable AWS credentials.*{says}") as error:
        store.has("0" * 64)
    assert "\n" not in str(error.value)
    assert keyless.requests == []


@pytest.mark.parametrize("how", ["gone", "junk", "expired", "fails"])
def test_a_process_that_breaks_in_the_middle_is_an_error_of_credentials(
    keyless: Amazon,
    store: S3Store,
    source: LocalStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """It was there when the client was made; what it does later comes out of any request, and is
    none of the server's faults."""
    program, given = tmp_path / "program", tmp_path / "given.json"
    program.write_text(f"#!/bin/sh\ncat {given}\n")
    program.chmod(0o755)
    use_files(monkeypatch, tmp_path, f"[default]\ncredential_process = {program}\n")
    keyless.keys["FIRST"] = OTHER
    # so soon over that every request asks for others
    given.write_text(document("FIRST", OTHER, 5, token="SessionToken"))
    digest = commit(source).digest
    store.push(source, digest)
    keyless.requests.clear()
    if how == "gone":
        program.unlink()
    else:
        given.write_text(
            "junk" if how == "junk" else document("FIRST", OTHER, -5, token="SessionToken")
        )
        program.write_text(program.read_text() + ("exit 1\n" if how == "fails" else ""))
    with pytest.raises(ConfigError, match="no usable AWS credentials") as error:
        store.push(source, digest)
    require_no_secret(error.value)
    assert keyless.requests == []


@pytest.fixture
def role(keyless: Amazon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Role]:
    """A container's endpoint is where credentials come from."""
    with Role(keyless, "a-password-that-no-message-may-show") as role:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.url)
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", role.password)
        monkeypatch.setattr(ContainerMetadataFetcher, "SLEEP_TIME", 0.01)
        yield role


def test_a_containers_credentials_are_renewed_in_the_middle_of_a_push(
    keyless: Amazon, role: Role, store: S3Store, source: LocalStore, target: LocalStore
) -> None:
    digest = commit(source).digest
    store.push(source, digest)
    used = {seen.key for seen in keyless.requests if "partNumber=" in seen.target}
    assert len(used) > 1
    assert used < role.keys.keys()
    assert files_of(store.pull(digest, target)) == CONTENT
    assert {seen.code for seen in keyless.requests} == {None}


def test_a_container_whose_endpoint_goes_away_is_an_error(
    keyless: Amazon, role: Role, store: S3Store, source: LocalStore
) -> None:
    digest = commit(source).digest
    store.push(source, digest)
    role.down = True
    with pytest.raises(ConfigError, match=r"no usable AWS credentials.*->") as error:
        store.push(source, digest)
    require_no_secret(
        error.value,
        role.password,
        *(word for key in role.keys.values() for word in (key.secret, key.token)),
    )


@pytest.mark.parametrize("how", ["given", "refused", "overloaded"])
def test_a_role_of_another_account_is_taken_on_or_refused(
    keyless: Amazon,
    store: S3Store,
    source: LocalStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """Who refuses is the token service: what the role may do in the bucket does not come into
    it."""
    keyless.keys["ASSUMED"] = OTHER
    use_files(
        monkeypatch,
        tmp_path,
        f"[default]\nregion = {HOME}\nrole_arn ="
        " arn:aws:iam::123456789012:role/train\nsource_profile = base\n",
        f"[base]\naws_access_key_id = BASE\naws_secret_access_key = {SECRET}\n",
    )
    with TokenService("ASSUMED", OTHER, how) as service:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", service.url)
        # of the token service's client; the store's has its own
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        digest = commit(source).digest
        if how == "given":
            store.push(source, digest)
            assert {(seen.key, seen.code) for seen in keyless.requests} == {("ASSUMED", None)}
            return
        expected, says = {
            "refused": (
                ConfigError,
                r"no usable AWS credentials.*AccessDenied.*AssumeRole.*may not",
            ),
            "overloaded": (TransferError, r"overloaded.*Throttling.*run again"),
        }[how]
        with pytest.raises(expected, match=says) as error:
            store.push(source, digest)
    assert keyless.requests == []
    require_no_secret(error.value)


@pytest.mark.parametrize(
    ("there", "says"),
    [
        ({}, "InvalidAccessKeyId.*renew or correct"),
        ({KEY: OTHER}, "InvalidToken.*renew or correct"),
        ({KEY: Key("another")}, "SignatureDoesNotMatch.*renew or correct"),
        ({KEY: Key(SECRET, expired=True)}, "ExpiredToken.*renew or correct"),
    ],
)
def test_credentials_that_amazon_refuses_are_an_error_that_says_so(
    amazon: Amazon, store: S3Store, source: LocalStore, there: dict[str, Key], says: str
) -> None:
    amazon.keys = there
    with pytest.raises(ConfigError, match=says):
        store.push(source, commit(source).digest)
    assert len(amazon.requests) == 1


def test_credentials_that_have_expired_are_named_where_the_answer_has_no_words(
    amazon: Amazon, store: S3Store
) -> None:
    amazon.keys[KEY] = Key(SECRET, expired=True)
    with pytest.raises(ConfigError, match=r"400.*->.*expired.*renew"):
        store.has("0" * 64)


# -- secrets


def require_no_secret(error: LmflowsError, *secrets: str | None) -> None:
    """Neither in what is said, nor in what it comes from."""
    said = "".join([*traceback.format_exception(error), json.dumps(error.to_dict()), repr(error)])
    assert [
        secret
        for secret in (SECRET, OTHER.secret, OTHER.token, "AWS4-HMAC", *secrets)
        if secret and secret in said
    ] == []


def test_no_secret_in_messages_logs_and_names(
    keyless: Amazon,
    store: S3Store,
    source: LocalStore,
    tmp_path: Path,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
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
    for there in (
        {},
        {KEY: Key(SECRET, OTHER.token)},
        {KEY: Key(OTHER.secret)},
        {KEY: Key(OTHER.secret, OTHER.token, expired=True)},
    ):
        keyless.keys = there
        assert "refuses the credentials" in str(failure(at(location)))
    keyless.keys = {KEY: OTHER}
    assert "no such bucket" in str(failure(at(f"s3://no-such-bucket/a?region={HOME}")))
    store.push(source, digest)
    assert store.verify(digest) == list[Problem]()
    given.write_text(given.read_text().replace("AccessKeyId", "Key"))
    assert "no usable AWS credentials" in str(failure(at(location)))
    given.write_text(given.read_text()[1:])
    assert "no usable AWS credentials" in str(failure(at(location)))
    given.write_text(document(KEY, OTHER, 60, token="SessionToken"))
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:password@127.0.0.1:{free_port}")
    assert "proxy" in str(failure(at(location)))
    require_no_secret(
        LmflowsError(
            repr(
                [
                    store,
                    store.objects,
                    store.bucket,
                    store.bucket.location,
                    store.bucket.tuning,
                    store.location,
                ]
            )
        )
    )
    ours = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(("artifacts", "configs", "flows"))
    ]
    assert [line for line in ours if OTHER.secret in line or str(OTHER.token) in line] == []
