"""One prefix of one bucket, and what its errors mean in words that name a remedy. Knows nothing of
artifacts.

What is sent carries a checksum that we compute and the server checks (SHA-256 for a whole object,
CRC-32 for a part), as a signed header. So the body itself is not signed once more: botocore would
hash every byte a second time.
"""

from __future__ import annotations

import os
import random
import ssl
import threading
import time
import traceback
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

import boto3
from boto3.s3.transfer import TransferConfig
from botocore import credentials
from botocore import exceptions as aws
from botocore.config import Config
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as ConnectionBroken

from configs.errors import ConfigError, LmflowsError, TransferError
from configs.location import S3Location

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef, ResponseMetadataTypeDef

T = TypeVar("T")
MiB = 1 << 20
# ClientError codes by what one can do about them (AWS, MinIO, Ceph and others use the same names).
CREDENTIALS = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidSecurity",
    "RequestTimeTooSkewed",
    "NotSignedUp",
    "AuthorizationQueryParametersError",
)
FORBIDDEN = ("AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "403", "401")
WRONG_REGION = (
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "TemporaryRedirect",
    "301",
    "307",
)
TRY_AGAIN = (
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "InternalError",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "RequestTimeout",
    "RequestLimitExceeded",
    "BadDigest",
    "IncompleteBody",
    "InvalidDigest",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
    "OperationAborted",
    "ConditionalRequestConflict",
    "XMinioServerNotInitialized",
)
# One request up to 1 GiB: a server must read and write all of it before it answers. More than 5 GiB
# no server copies in one.
COPY = TransferConfig(
    multipart_threshold=1024 * MiB, multipart_chunksize=512 * MiB, use_threads=True
)
ABSENT = ("NoSuchKey", "404", "NotFound")
NO_CREDENTIALS = (
    aws.NoCredentialsError,
    aws.PartialCredentialsError,
    aws.CredentialRetrievalError,
    aws.ProfileNotFound,
    aws.SSOError,
    aws.TokenRetrievalError,
    aws.RefreshWithMFAUnsupportedError,
)
# botocore lets urllib3's own errors through if an answer breaks off that is an error itself
BROKEN_OFF = (
    aws.HTTPClientError,
    aws.ConnectionError,
    aws.IncompleteReadError,
    aws.ReadTimeoutError,
    ConnectionBroken,
)
# What botocore's parsers raise, and we on missing fields, when a byte of an answer's XML was
# changed on the way: they trust it to be whole.
UNREADABLE = (ResponseParserError, ValueError, KeyError)


@dataclass(frozen=True)
class Tuning:
    """How a store talks to its server. The defaults are for large files; tests ask for small parts
    and short waits.

    `part_bytes`: up to this size a file goes in one request; a larger one in parts of this size, or
    more if 10 000 such parts do not hold it. `memory_bytes`: what may be on its way at a time.
    `attempts`: how often one request is tried without any progress before it counts as broken off,
    on top of the `requests` that botocore makes of each try. `backoff_seconds`: the wait after the
    first, doubled after each (with jitter, at most 20 s).
    """

    part_bytes: int = 16 * MiB
    threads: int = 10
    memory_bytes: int = 128 * MiB
    attempts: int = 5
    requests: int = 4
    backoff_seconds: float = 0.5
    connect_seconds: float = 10.0
    read_seconds: float = 60.0


class Bucket:
    """The objects below a location's prefix. Keys are relative to it; the client is made on first
    use, and is shared by all threads."""

    def __init__(self, location: S3Location, tuning: Tuning | None = None) -> None:
        self.location, self.tuning = location, tuning or Tuning()
        self.name = location.bucket
        self._client: S3Client | None = None
        self._exists = False
        self._lock = threading.Lock()

    def key(self, relative: str) -> str:
        return f"{self.location.prefix}/{relative}" if self.location.prefix else relative

    def relative(self, key: str) -> str:
        return key.removeprefix(f"{self.location.prefix}/") if self.location.prefix else key

    @property
    def client(self) -> S3Client:
        with self._lock:
            if self._client is None:
                with self.explained():
                    try:
                        self._client = self._connect()
                    except ValueError as error:
                        if isinstance(error, aws.BotoCoreError) or _is_of_credentials(error):
                            raise
                        raise ConfigError(
                            f"no client can be made ({error})",
                            where=str(self.location),
                            hint="check the endpoint",
                        ) from error
            return self._client

    def _connect(self) -> S3Client:
        """A client by the normal AWS chain: environment, shared files, container or instance role.

        Unless the URL says otherwise, an endpoint that is not Amazon's is addressed path style: few
        S3-compatible servers have a host name for each bucket, and all of them answer to a path.
        """
        # which boto3 does not read
        session = boto3.Session(region_name=os.environ.get("AWS_REGION") or None)
        tuning, style = self.tuning, self.location.path_style

        def client(addressing: Literal["auto", "path", "virtual"]) -> S3Client:
            config = Config(
                retries={"mode": "standard", "total_max_attempts": tuning.requests},
                max_pool_connections=2 * tuning.threads + 4,
                connect_timeout=tuning.connect_seconds,
                read_timeout=tuning.read_seconds,
                tcp_keepalive=True,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": addressing, "payload_signing_enabled": False},
            )
            made = session.client(
                "s3",
                endpoint_url=self.location.endpoint_url,
                region_name=self.location.region,
                config=config,
            )
            made.meta.events.register_first("needs-retry.s3.HeadBucket", _stop_at_redirect)
            return made

        if style is not None:
            return client("path" if style else "virtual")
        made = client("path" if self.location.endpoint_url else "auto")
        # the environment or ~/.aws may name one
        endpoint = self.location.endpoint_url or made.meta.endpoint_url
        is_amazons = (urlsplit(endpoint).hostname or "").endswith(
            (".amazonaws.com", ".amazonaws.com.cn")
        )
        return (
            made
            if is_amazons != bool(self.location.endpoint_url)
            else client("auto" if is_amazons else "path")
        )

    @contextmanager
    def explained(self, what: str = "") -> Iterator[None]:
        """Turn what boto3 raises into an error that names the location, what was being done, and
        the remedy."""
        try:
            yield
        except Exception as error:
            if isinstance(
                error, (aws.BotoCoreError, aws.ClientError, ConnectionBroken, *UNREADABLE)
            ) or _is_of_credentials(error):
                raise explain(error, str(self.location), what) from error
            raise

    def head(self, relative: str) -> Facts | None:
        """What is known of an object; None if there is none."""
        with self.explained(f"looking for {relative}"):
            try:
                answer = self.client.head_object(
                    Bucket=self.name, Key=self.key(relative), ChecksumMode="ENABLED"
                )
            except aws.ClientError as error:
                if code_of(error) in ABSENT:
                    self._require_bucket()
                    return None
                raise
        checksum = (
            answer.get("ChecksumSHA256", "")
            if answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
            else ""
        )
        return Facts(
            size=answer["ContentLength"],
            modified=answer["LastModified"].timestamp(),
            now=_date(answer["ResponseMetadata"]),
            sha256=b64decode(checksum).hex() if checksum and "-" not in checksum else None,
        )

    def _require_bucket(self) -> None:
        """The answer to a HEAD does not tell a missing object from a missing bucket: ask, once."""
        if self._exists:
            return
        try:
            self.client.head_bucket(Bucket=self.name)
        except aws.ClientError as error:
            if status_of(error) == 404:
                error.response["Error"] = {
                    "Code": "NoSuchBucket",
                    "Message": "The specified bucket does not exist",
                }
                raise
            if status_of(error) != 403:  # who may not ask about the bucket may still use it
                raise
        self._exists = True

    def read(self, relative: str, limit: int | None = None) -> tuple[bytes, str] | None:
        """A small object, or its first `limit` bytes, and its ETag; None if there is none."""

        def once() -> tuple[bytes, str] | None:
            with self.explained(f"reading {relative}"):
                try:
                    answer = self.client.get_object(
                        Bucket=self.name, Key=self.key(relative), ChecksumMode="ENABLED"
                    )
                    with closing(answer["Body"]) as body:
                        return body.read(limit), answer["ETag"]
                except aws.ClientError as error:
                    if code_of(error) in ABSENT:
                        return None
                    raise

        return self.retrying(once)

    def below(self, prefix: str) -> list[Listed]:
        """What is stored below a prefix."""

        def once() -> list[Listed]:
            with self.explained(f"listing {prefix}"):
                pages = self.client.get_paginator("list_objects_v2").paginate(
                    Bucket=self.name, Prefix=self.key(prefix)
                )
                return [item for page in pages for item in self._listed(page)]

        return self.retrying(once)

    def first_page(self, prefix: str) -> list[Listed] | None:
        """What is stored below a prefix if one request tells all of it (AWS: 1000 objects), else
        None."""
        with self.explained(f"listing {prefix}"):
            page = self.client.list_objects_v2(Bucket=self.name, Prefix=self.key(prefix))
            return None if page.get("IsTruncated") else self._listed(page)

    def _listed(self, page: ListObjectsV2OutputTypeDef) -> list[Listed]:
        return [
            Listed(self.relative(item["Key"]), item["Size"], item["LastModified"].timestamp())
            for item in page.get("Contents", ())
        ]

    def refresh(self, relative: str) -> bool:
        """Make an object young by copying it onto itself, on the server; False if there is none."""
        source = {"Bucket": self.name, "Key": self.key(relative)}
        with self.explained(f"touching {relative}"):
            try:
                self.client.copy(
                    source,  # type: ignore[arg-type]
                    self.name,
                    source["Key"],
                    ExtraArgs={"MetadataDirective": "REPLACE"},
                    Config=COPY,
                )
            except aws.ClientError as error:
                if code_of(error) in ABSENT:
                    return False
                raise
        return True

    def delete(self, relative: str) -> None:
        def once() -> None:
            with self.explained(f"removing {relative}"):
                try:
                    self.client.delete_object(Bucket=self.name, Key=self.key(relative))
                except aws.ClientError as error:
                    if code_of(error) not in ABSENT:  # some servers say so of what is gone already
                        raise

        self.retrying(once)

    def retrying(self, work: Callable[[], T], stopped: threading.Event | None = None) -> T:
        """Do it again while it fails in a way that may pass; raises the last TransferError when the
        attempts are used up."""
        for attempt in range(self.tuning.attempts - 1):
            try:
                return work()
            except TransferError:
                self.wait(attempt, stopped)
        return work()

    def wait(self, attempt: int, stopped: threading.Event | None = None) -> None:
        """The wait before the next attempt; shorter if the event is set."""
        seconds = min(20.0, self.tuning.backoff_seconds * 2**attempt) * random.uniform(0.5, 1.0)
        (stopped or threading.Event()).wait(seconds)


@dataclass(frozen=True)
class Facts:
    """What a HEAD tells: bytes, Unix times of the last write and of the answer, both by the
    server's clock, and the hex SHA-256 of the whole object if the server keeps one."""

    size: int
    modified: float
    now: float
    sha256: str | None


@dataclass(frozen=True)
class Listed:
    """What a list tells of an object: its key relative to the prefix, bytes, and Unix time of the
    last write by the server's clock."""

    key: str
    size: int
    modified: float


def _stop_at_redirect(response: tuple[Any, Any] | None, **_: Any) -> None:
    """Make an error of a HeadBucket that is sent elsewhere and not told to which region: botocore
    would ask by HeadBucket, without end."""
    if response is None or response[0].status_code not in (301, 302, 307):
        return
    if "x-amz-bucket-region" not in response[1]["ResponseMetadata"]["HTTPHeaders"]:
        raise aws.ClientError(response[1], "HeadBucket")


def _date(metadata: ResponseMetadataTypeDef) -> float:
    try:
        return parsedate_to_datetime(metadata["HTTPHeaders"]["date"]).timestamp()
    except (KeyError, ValueError):
        return time.time()


def code_of(error: aws.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: aws.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def may_pass(error: aws.ClientError) -> bool:
    """Whether the same request can succeed a little later."""
    status = status_of(error)
    return code_of(error) in TRY_AGAIN or (status >= 500 and status != 501) or status in (408, 429)


def _broke_off(error: BaseException) -> bool:
    """Whether TLS ended because the connection did: nothing that a certificate or a setting would
    cure."""
    cause = error.__cause__ or error.__context__
    return isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)) or (
        cause is not None and _broke_off(cause)
    )


def _is_of_credentials(error: BaseException) -> bool:
    """Whether it was raised while botocore looked for credentials or renewed them, in the middle of
    any request. Its providers let through what they meet: an OSError of a credential_process that
    is gone, a ValueError of what it printed, a RuntimeError if all have expired."""
    return any(
        frame.f_code.co_filename == credentials.__file__
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def explain(error: Exception, where: str, what: str = "") -> LmflowsError:
    """The error that a user can act on. TransferError is what trying again may cure."""
    doing = f", {what}" if what else ""
    passing = (
        may_pass(error) if isinstance(error, aws.ClientError) else isinstance(error, BROKEN_OFF)
    )
    if isinstance(error, NO_CREDENTIALS) or (_is_of_credentials(error) and not passing):
        # a process's words have line ends
        return ConfigError(
            f"no usable AWS credentials ({' '.join(str(error).split())}){doing}",
            where=where,
            hint=(
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, fill ~/.aws, or"
                " run where there is an instance role"
            ),
        )
    if isinstance(error, aws.ClientError):
        return _refused(error, where, doing)
    if isinstance(error, aws.SSLError) and not _broke_off(error):
        return ConfigError(
            f"no trusted TLS connection ({error}){doing}",
            where=where,
            hint=(
                "set AWS_CA_BUNDLE to the server's CA certificate, or write http:// if the server"
                " speaks no TLS"
            ),
        )
    if isinstance(error, (*UNREADABLE, aws.FlexibleChecksumError)) and not isinstance(
        error, aws.ValidationError
    ):
        return TransferError(
            f"the server's answer cannot be read or was changed on the way ({error}){doing}",
            where=where,
            hint=(
                "run again: what has been transferred is kept; if it stays, this is no S3 server,"
                " or a proxy changes answers"
            ),
        )
    if isinstance(error, BROKEN_OFF):
        return TransferError(
            f"the connection failed ({error}){doing}",
            where=where,
            hint=(
                "check that the server is up and the endpoint right, then run again: what has been"
                " transferred is kept"
            ),
        )
    return ConfigError(
        f"the request could not be made ({error}){doing}",
        where=where,
        hint="check the location, the region and ~/.aws/config",
    )


def _refused(error: aws.ClientError, where: str, doing: str) -> LmflowsError:
    code, status = code_of(error), status_of(error)
    said = f"{code}: {error.response.get('Error', {}).get('Message') or f'HTTP {status}'}{doing}"
    if code == "NoSuchBucket":
        return ConfigError(
            f"there is no such bucket ({said})",
            where=where,
            hint="create it, or correct the bucket's name or the endpoint",
        )
    if code in CREDENTIALS:
        return ConfigError(
            f"the server refuses the credentials ({said})",
            where=where,
            hint=(
                "renew or correct them (environment, ~/.aws or role), and check this machine's"
                " clock"
            ),
        )
    if code in WRONG_REGION:
        return ConfigError(
            f"the bucket is in another region ({said})",
            where=where,
            hint=(
                "append ?region=REGION to the location, or set AWS_REGION; if the endpoint"
                " redirects, name where to (https://...)"
            ),
        )
    if may_pass(error):
        return TransferError(
            f"the server failed or is overloaded ({said})",
            where=where,
            hint="run again: what has been transferred is kept",
        )
    if code in FORBIDDEN or status in (401, 403):
        return ConfigError(
            f"the server refuses access ({said})",
            where=where,
            hint=(
                "the role needs s3:GetObject, s3:PutObject, s3:DeleteObject,"
                " s3:AbortMultipartUpload and s3:ListMultipartUploadParts below the prefix,"
                " s3:ListBucket and s3:ListBucketMultipartUploads on the bucket"
            ),
        )
    if code == "400":  # to a HEAD there is no answer that says why
        return ConfigError(
            f"the server refuses the request without a reason ({said})",
            where=where,
            hint=(
                "mostly the credentials have expired: renew them; or the bucket is in another"
                " region: append ?region=REGION"
            ),
        )
    return ConfigError(
        f"the server refuses the request ({said})",
        where=where,
        hint="check the location; if it is right, this server does not speak enough of S3",
    )
