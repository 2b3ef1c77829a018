"""Errors of the S3 store name the place and the remedy, never a secret; and its memory is
bounded."""

# covers artifacts/store/s3/client.py

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from artifacts.store.local import LocalStore
from artifacts.store.s3.store import S3Store
from configs.errors import ConfigError, TransferError
from configs.paths import PROJECT
from tests.support.faulty_proxy import Fault, in_front_of
from tests.support.rounds import rounds
from tests.support.s3_parts import at, commit
from tests.support.s3_server import BUCKET, SECRET, Server, credentials, running


def test_a_wrong_bucket_is_named(server: Server, source: LocalStore) -> None:
    store = at(server.location("a", bucket="no-such-bucket"))
    digest = commit(source).digest
    for action in (
        lambda: store.has(digest),
        lambda: store.manifest(digest),
        store.digests,
        lambda: store.push(source, digest),
        lambda: store.objects.get("refs/a/dev.json"),
        lambda: store.objects.swap("refs/a/dev.json", b"", seen=None),
    ):
        with pytest.raises(ConfigError, match=r"s3://no-such-bucket/a.*no such bucket.*->"):
            action()


def test_an_endpoint_that_nobody_answers_at_is_named(
    server: Server, free_port: int, source: LocalStore
) -> None:
    store = at(f"s3://{BUCKET}/a?endpoint_url=http://127.0.0.1:{free_port}")
    with pytest.raises(TransferError, match=f"127.0.0.1:{free_port}.*connection failed.*->"):
        store.has("0" * 64)
    with pytest.raises(TransferError):
        store.push(source, commit(source).digest)


def test_missing_credentials_are_an_error_that_says_where_they_come_from(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match=r"no usable AWS credentials.*AWS_PROFILE"):
        at(server.location("a")).has("0" * 64)


def test_an_unknown_profile_is_an_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigError, match="nobody"):
        at(server.location("a")).has("0" * 64)


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "AccessDenied", "s3:PutObject"),
        (403, "InvalidAccessKeyId", "renew or correct"),
        (403, "SignatureDoesNotMatch", "renew or correct"),
        (403, "RequestTimeTooSkewed", "clock"),
        (301, "PermanentRedirect", "region="),
        (400, "AuthorizationHeaderMalformed", "region="),
        (400, "EntityTooLarge", "does not speak enough"),
    ],
)
def test_a_refusal_says_what_to_do(
    server: Server, source: LocalStore, status: int, code: str, says: str
) -> None:
    with (
        in_front_of(server.url, Fault("status", "PUT", status=status, code=code)) as proxy,
        pytest.raises(ConfigError, match=f"{code}.*->.*{says}"),
    ):
        at(f"s3://{BUCKET}/refused?endpoint_url={proxy.url}").push(source, commit(source).digest)


def test_no_credentials_in_messages_and_logs(
    server: Server,
    s3: S3Store,
    source: LocalStore,
    target: LocalStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    digest = commit(source).digest
    s3.push(source, digest)
    s3.pull(digest, target)
    with pytest.raises(ConfigError) as error:
        at(server.location("a", bucket="no-such-bucket")).manifest(digest)
    said = "\n".join(
        [
            str(error.value),
            json.dumps(error.value.to_dict()),
            repr(s3),
            s3.location,
            str(s3.bucket.tuning),
        ]
    )
    assert SECRET not in said
    assert "AWS4-HMAC" not in said
    assert SECRET not in "".join(record.getMessage() for record in caplog.records)
    assert not [
        record for record in caplog.records if record.name.startswith(("artifacts", "configs"))
    ]


MEMORY = """
import sys
from pathlib import Path
from artifacts.store.local import LocalStore
from artifacts.store.open import open_store
source, target = LocalStore(Path(sys.argv[1])), LocalStore(Path(sys.argv[2]))
s3 = open_store(sys.argv[3])
[digest] = source.digests()
assert s3.push(source, digest) == source.manifest(digest).size
s3.pull(digest, target)
# VmHWM: ru_maxrss also counts the process that forked this one
status = open("/proc/self/status")
print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024)
"""


@pytest.mark.slow
@pytest.mark.soak
def test_much_data_takes_less_than_300_mb_of_memory(source: LocalStore, target: LocalStore) -> None:
    with source.staging() as staging:
        with staging.target("weights").open("wb") as file:
            file.write(b"weights")
            file.truncate((rounds(1, soak=2) << 29) + 7)
        source.commit(staging, "fp16")
    with credentials(), running() as server:
        command = [
            sys.executable,
            "-c",
            MEMORY,
            str(source.root),
            str(target.root),
            server.location("memory"),
        ]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert float(done.stdout) < 300
