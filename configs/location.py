"""Where a store is: a folder, or an S3 prefix as one URL. What names a store in a config, a policy
and on the command line.

    /srv/models                                                       a folder
    s3://bucket/prefix                                                AWS S3
    s3://bucket/prefix?endpoint_url=http://minio:9000&path_style=true an S3-compatible server

Credentials never stand in it: they come by the normal AWS chain (environment, shared files,
instance role), and so do region and endpoint if the URL does not name them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import AfterValidator

S3 = "s3://"
OPTIONS = ("endpoint_url", "path_style", "region")


@dataclass(frozen=True)
class S3Location:
    """A bucket, and the prefix below which the store lies (no slash at either end; empty is the
    bucket itself).

    `path_style` asks for `endpoint/bucket/key` in place of `bucket.endpoint/key`; None leaves it to
    boto3.
    """

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    path_style: bool | None = None
    region: str | None = None

    def __str__(self) -> str:
        options = {
            "endpoint_url": self.endpoint_url,
            "path_style": {True: "true", False: "false", None: None}[self.path_style],
            "region": self.region,
        }
        query = urlencode(
            {key: value for key, value in options.items() if value is not None}, safe=":/"
        )
        place = "/".join(filter(None, (self.bucket, self.prefix)))
        return S3 + "?".join(filter(None, (place, query)))


def parse_s3(url: str) -> S3Location:
    """Read an S3 URL; ValueError, without the URL's secrets, if it is none."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]", parts.netloc
    ):
        raise ValueError("an S3 store is s3://BUCKET/PREFIX, without credentials")
    prefix = parts.path.strip("/")
    if (
        parts.fragment
        or re.search(r"[^A-Za-z0-9/._=-]", prefix)
        or {"", ".", ".."} & set(prefix.split("/") if prefix else ())
    ):
        raise ValueError(
            "the prefix of an S3 store has letters, digits and . _ = - between single slashes"
        )
    given = parse_qsl(parts.query, keep_blank_values=True)
    options = dict(given)
    if len(options) < len(given) or options.keys() - set(OPTIONS):
        raise ValueError(
            f"an S3 store's options are {', '.join(OPTIONS)}, each once; credentials come from the"
            " environment or ~/.aws"
        )
    endpoint = options.get("endpoint_url")
    if endpoint is not None:
        target = urlsplit(endpoint)
        if (
            target.scheme not in ("http", "https")
            or not target.hostname
            or "@" in target.netloc
            or target.query
        ):
            raise ValueError("endpoint_url must be http(s)://HOST[:PORT], without credentials")
    style = options.get("path_style")
    if style not in (None, "true", "false"):
        raise ValueError("path_style must be true or false")
    return S3Location(
        bucket=parts.netloc,
        prefix=prefix,
        endpoint_url=endpoint,
        region=options.get("region"),
        path_style=None if style is None else style == "true",
    )


def normal(location: str) -> str:
    """One spelling for each place: an S3 URL in its normal form, a folder as it is; ValueError if
    it can be neither."""
    if location.startswith(S3):
        return str(parse_s3(location))
    if not location or re.match(r"[a-z][a-z0-9+.-]*://", location):
        raise ValueError("a store is a folder or s3://BUCKET/PREFIX")
    return location


def absolute(location: str, folder: Path) -> str:
    """A folder relative to `folder` made absolute; a URL as it is."""
    if location.startswith(S3):
        return location
    try:
        return str(folder / Path(location).expanduser())
    except RuntimeError:  # `~somebody` who is not a user here: a plain name, as for a shell
        return str(folder / location)


def absolute_path(path: Path, folder: Path) -> Path:
    """The same for a path that is never a URL."""
    return Path(absolute(str(path), folder))


Location = Annotated[str, AfterValidator(normal)]
# A field that may stay empty. Prefect's forms show `str | None` as a choice between two types, and
# `str` as a place to write.
LocationOrNothing = Annotated[str, AfterValidator(lambda text: normal(text) if text else "")]
