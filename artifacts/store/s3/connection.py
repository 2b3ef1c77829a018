"""The client of boto3 for a location: how it is addressed, how it signs, and how long it waits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import boto3
from botocore import exceptions as aws
from botocore.config import Config

from configs.location import S3Location

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MiB = 1 << 20
AMAZON = (".amazonaws.com", ".amazonaws.com.cn")
Addressing = Literal["auto", "path", "virtual"]


@dataclass(frozen=True)
class Tuning:
    """How a store talks to its server. The defaults are for large files; tests ask for small parts
    and short waits.

    Attributes:
        part_bytes: up to this size a file goes in one request; a larger one in parts of this size,
            or more if 10 000 such parts do not hold it.
        memory_bytes: what may be on its way at a time.
        attempts: how often one request is tried without any progress before it counts as broken
            off, on top of the `requests` that botocore makes of each try.
        backoff_seconds: the wait after the first attempt, doubled after each (with jitter, at most
            20 s).
    """

    part_bytes: int = 16 * MiB
    threads: int = 10
    memory_bytes: int = 128 * MiB
    attempts: int = 5
    requests: int = 4
    backoff_seconds: float = 0.5
    connect_seconds: float = 10.0
    read_seconds: float = 60.0


def connect(location: S3Location, tuning: Tuning) -> S3Client:
    """A client by the normal AWS chain: environment, shared files, container or instance role.

    Unless the URL says otherwise, an endpoint that is not Amazon's is addressed path style: few
    S3-compatible servers have a host name for each bucket, and all of them answer to a path.

    Raises what boto3 raises (`artifacts.store.s3.errors`).
    """
    # which boto3 does not read
    session = boto3.Session(region_name=os.environ.get("AWS_REGION") or None)

    def client_for(addressing: Addressing) -> S3Client:
        return _client(session, location, tuning, addressing)

    if location.path_style is not None:
        return client_for("path" if location.path_style else "virtual")
    guess: Addressing = "path" if location.endpoint_url else "auto"
    client = client_for(guess)
    # the environment or ~/.aws may name one
    endpoint = location.endpoint_url or client.meta.endpoint_url
    is_amazons = (urlsplit(endpoint).hostname or "").endswith(AMAZON)
    fitting: Addressing = "auto" if is_amazons else "path"
    return client if guess == fitting else client_for(fitting)


def _client(
    session: boto3.Session, location: S3Location, tuning: Tuning, addressing: Addressing
) -> S3Client:
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
    client = session.client(
        "s3", endpoint_url=location.endpoint_url, region_name=location.region, config=config
    )
    client.meta.events.register_first("needs-retry.s3.HeadBucket", _stop_at_redirect)
    return client


def _stop_at_redirect(response: tuple[Any, Any] | None, **_: Any) -> None:
    """Make an error of a HeadBucket that is sent elsewhere and not told to which region: botocore
    would ask by HeadBucket, without end."""
    if response is None or response[0].status_code not in (301, 302, 307):
        return
    if "x-amz-bucket-region" not in response[1]["ResponseMetadata"]["HTTPHeaders"]:
        raise aws.ClientError(response[1], "HeadBucket")
