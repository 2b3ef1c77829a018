"""A real S3 server in a process of its own: moto's, behind a small middleware that makes it as
strict as AWS.

moto (5.2.5) stores whatever it is given: it checks neither x-amz-checksum-* nor Content-MD5, does
not keep the SHA-256 of a plain put, takes a body that is shorter than announced, says 2010 for when
an upload began, reads a whole object to send a range of it, and between two of its threads a
conditional write is not atomic. So the middleware, which runs in the server's process,

* answers IncompleteBody and BadDigest as AWS does, gives checksums back, and lists those of parts;
* takes one write of a key at a time;
* sends the bytes of stored objects itself, from moto's own buffers;
* remembers when an upload began;
* writes one line a request to a log, which tests count.

`checksums=False` makes it a server that neither checks nor returns checksums; `conditions=False`
one that ignores If-Match and If-None-Match, `ignores` one that ignores those headers;
`opaque_etags` one whose ETags are no MD5, as with AWS's own keys.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from artifacts.store.s3.connection import Tuning
from configs.paths import PROJECT

BUCKET = "models"
ACCOUNT = "123456789012"  # moto's
HASHES = {
    "SHA256": lambda data: hashlib.sha256(data).digest(),
    "SHA1": lambda data: hashlib.sha1(data).digest(),
    "CRC32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
}
SECRET = "a-secret-that-no-message-may-show"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


SMALL = Tuning(
    part_bytes=1 << 18,
    threads=4,
    attempts=6,
    requests=1,
    backoff_seconds=0.01,
    connect_seconds=2.0,
    read_seconds=10.0,
)


@contextmanager
def credentials() -> Iterator[None]:
    """Made-up ones in the environment, and none of the user's files."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        for name in (
            "AWS_PROFILE",
            "AWS_SESSION_TOKEN",
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_S3",
            "AWS_REGION",
            "AWS_CA_BUNDLE",
        ):
            patch.delenv(name, raising=False)
        yield


@dataclass(frozen=True)
class Seen:
    """One request as the server saw it: bytes of its body, bytes of the answer's where known, and
    the status."""

    method: str
    path: str
    query: str
    size: int
    status: int


@dataclass(frozen=True)
class Server:
    url: str
    log: Path
    process: subprocess.Popen[str]

    def requests(self, method: str = "", path: str = "", query: str = "") -> list[Seen]:
        """The requests so far of that method whose path and query contain these."""
        rows = (line.split("\t") for line in self.log.read_text().splitlines())
        found = [
            Seen(row[0], row[1], row[2], int(row[3]), int(row[4])) for row in rows if len(row) == 5
        ]
        return [
            seen
            for seen in found
            if seen.method.startswith(method) and path in seen.path and query in seen.query
        ]

    def forget(self) -> None:
        """Start counting anew."""
        os.truncate(self.log, 0)

    def location(self, prefix: str = "", bucket: str = BUCKET) -> str:
        return f"s3://{bucket}{'/' if prefix else ''}{prefix}?endpoint_url={self.url}"


@contextmanager
def running(
    *,
    checksums: bool = True,
    conditions: bool = True,
    ignores: Sequence[str] = (),
    opaque_etags: bool = False,
    ceph: bool = False,
    smallest_part: int = 5 << 20,
) -> Iterator[Server]:
    """A server on a free port with an empty bucket `models`.

    `ceph`: what Ceph 16.2 was seen to do. If-Match holds for an ETag without quotes alone; the
    parts of an upload that has ended are NoSuchKey; an upload is completed only with all the parts
    that it has.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "requests"
        log.touch()
        command = [
            sys.executable,
            "-m",
            "tests.support.s3_server",
            "--log",
            str(log),
            "--smallest-part",
            str(smallest_part),
        ]
        command += (
            ["--no-checksums"] * (not checksums)
            + ["--opaque-etags"] * opaque_etags
            + ["--ceph"] * ceph
        )
        command += ["--ignores", *(ignores if conditions else ("If-Match", "If-None-Match"))]
        environment = (
            os.environ
            | ENVIRONMENT
            | {
                "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(1 << 20),
                "TMPDIR": folder,
            }
        )
        with (Path(folder) / "errors").open("w+") as errors:
            process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                if not line:
                    errors.seek(0)
                    raise RuntimeError(f"the S3 server did not start: {errors.read()[-2000:]}")
                yield Server(f"http://127.0.0.1:{int(line)}", log, process)
            finally:
                process.kill()
                process.wait()
                process.stdout.close()  # type: ignore[union-attr]


class Strict:
    """The middleware. `environ`, `start` and the answer are WSGI's."""

    def __init__(
        self,
        app: Any,
        log: Path,
        *,
        checksums: bool,
        ignores: Sequence[str],
        opaque_etags: bool,
        ceph: bool,
    ) -> None:
        self.app, self.checksums, self.opaque_etags, self.ceph = app, checksums, opaque_etags, ceph
        self.ignores = ["HTTP_" + name.upper().replace("-", "_") for name in ignores]
        self.log = log.open("a", buffering=1)
        self.writes: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self.began: dict[str, float] = {}
        self.parts: dict[tuple[str, str], str] = {}

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path, query = (
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"],
            environ.get("QUERY_STRING", ""),
        )
        size = int(environ.get("CONTENT_LENGTH") or 0)

        def logged(status: str, headers: list[tuple[str, str]]) -> None:
            self.log.write(f"{method}\t{path}\t{query}\t{size}\t{status.split()[0]}\n")
            if self.opaque_etags:
                headers = [
                    (name, turned(value) if name.lower() == "etag" else value)
                    for name, value in headers
                ]
            start(status, headers)

        for name in self.ignores:
            environ.pop(name, None)
        if self.opaque_etags and "HTTP_IF_MATCH" in environ:
            environ["HTTP_IF_MATCH"] = turned(environ["HTTP_IF_MATCH"])
        if self.ceph and method == "PUT" and "HTTP_IF_MATCH" in environ:
            if environ["HTTP_IF_MATCH"].startswith('"'):
                environ["wsgi.input"].read(size)
                return refused(logged, "PreconditionFailed", "412 Precondition Failed")
            environ["HTTP_IF_MATCH"] = f'"{environ["HTTP_IF_MATCH"]}"'
        if self.ceph and method == "GET" and self.is_unknown_upload(environ):
            return refused(logged, "NoSuchKey", "404 Not Found")
        if method == "GET" and (answer := self.stored(environ, logged)) is not None:
            return answer
        if method not in ("PUT", "POST", "DELETE"):
            status, headers, data = self.ask(environ)
        else:
            body = environ["wsgi.input"].read(size) if size else b""
            if self.opaque_etags and method == "POST":
                body = turned(body.decode()).encode()
                environ["CONTENT_LENGTH"] = str(len(body))
            environ["wsgi.input"] = io.BytesIO(body)
            if problem := self.wrong(environ, body, size):
                return refused(logged, problem)
            if method in ("PUT", "POST") and self.is_unknown_upload(environ):
                return refused(logged, "NoSuchUpload", "404 Not Found")
            if self.ceph and method == "POST" and self.is_partial(environ, body):
                return refused(logged, "InvalidPart")
            if "partNumber" in query:
                status, headers, data = self.ask(environ)
            else:
                with self.writes[path]:
                    status, headers, data = self.ask(environ)
        data = self.corrected(environ, status, headers, data)
        logged(status, headers)
        return [data]

    def ask(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        found: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], _info: Any = None) -> None:
            found[:] = [status, headers]

        answer = self.app(environ, start)
        try:
            data = b"".join(answer)
        finally:
            if hasattr(answer, "close"):
                answer.close()
        return found[0], list(found[1]), data

    def wrong(self, environ: dict[str, Any], body: bytes, size: int) -> str | None:
        """What AWS would refuse a body for."""
        if len(body) < size:
            return "IncompleteBody"
        for name in HASHES:
            header = f"HTTP_X_AMZ_CHECKSUM_{name}"
            if not self.checksums:
                environ.pop(header, None)
                environ.pop("HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM", None)
            elif environ.get(header):
                if environ[header] != base64.b64encode(
                    HASHES[name](body)
                ).decode() and "complete" not in environ.get("QUERY_STRING", ""):
                    return (
                        "BadDigest"
                        if "uploadId" not in environ["QUERY_STRING"]
                        or environ["REQUEST_METHOD"] == "PUT"
                        else None
                    )
                environ["HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM"] = name  # then moto keeps it
        given = environ.get("HTTP_CONTENT_MD5")
        if (
            self.checksums
            and given
            and given != base64.b64encode(hashlib.md5(body).digest()).decode()
        ):
            return "BadDigest"
        return None

    def is_unknown_upload(self, environ: dict[str, Any]) -> bool:
        """Whether a request names an upload that is neither under way nor has just become its
        object; moto answers 500."""
        from moto.s3.models import s3_backends

        [upload] = parse_qs(environ.get("QUERY_STRING", "")).get("uploadId", [""])
        name, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
        if not upload:
            return False
        backend = s3_backends[ACCOUNT]["aws"]
        completed = (
            (found := backend.get_object(name, key)) is not None
            and found.multipart is not None
            and found.multipart.id == upload
        )
        return upload not in backend.buckets[name].multiparts and not (
            completed and environ["REQUEST_METHOD"] == "POST"
        )

    def is_partial(self, environ: dict[str, Any], body: bytes) -> bool:
        """Whether an upload is to be completed with fewer parts than it has."""
        from moto.s3.models import s3_backends

        [upload] = parse_qs(environ.get("QUERY_STRING", "")).get("uploadId", [""])
        under_way = (
            s3_backends[ACCOUNT]["aws"]
            .buckets[environ["PATH_INFO"].lstrip("/").partition("/")[0]]
            .multiparts
        )
        return upload in under_way and len(under_way[upload].parts) != body.count(b"<PartNumber>")

    def corrected(
        self, environ: dict[str, Any], status: str, headers: list[tuple[str, str]], data: bytes
    ) -> bytes:
        """The answer as AWS would give it."""
        method, query = (
            environ["REQUEST_METHOD"],
            parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True),
        )
        if self.opaque_etags and data.startswith(b"<?xml"):
            data = turned(data.decode()).encode()
        if not self.checksums:
            headers[:] = [
                (name, value)
                for name, value in headers
                if not name.lower().startswith("x-amz-checksum")
            ]
            data = re.sub(rb"<Checksum\w+>[^<]*</Checksum\w+>", b"", data)
        if method == "POST" and "uploads" in query and status.startswith("200"):
            found = re.search(rb"<UploadId>([^<]+)</UploadId>", data)
            assert found is not None
            self.began[found[1].decode()] = time.time()
        elif (
            method == "PUT"
            and "partNumber" in query
            and self.checksums
            and (crc := environ.get("HTTP_X_AMZ_CHECKSUM_CRC32"))
        ):
            self.parts[query["uploadId"][0], query["partNumber"][0]] = crc
        elif method == "GET" and "uploads" in query:
            data = re.sub(rb"<Upload>.*?</Upload>", self._with_time, data, flags=re.S)
        elif method == "GET" and "uploadId" in query and self.checksums:
            upload = query["uploadId"][0]
            data = re.sub(
                rb"<PartNumber>(\d+)</PartNumber>",
                lambda found: (
                    found[0]
                    + b"<ChecksumCRC32>%s</ChecksumCRC32>"
                    % self.parts.get((upload, found[1].decode()), "").encode()
                ),
                data,
            )
        else:
            return data
        headers[:] = [
            (name, value) for name, value in headers if name.lower() != "content-length"
        ] + [("Content-Length", str(len(data)))]
        return data

    def _with_time(self, found: re.Match[bytes]) -> bytes:
        upload = re.search(rb"<UploadId>([^<]+)</UploadId>", found[0])
        assert upload is not None
        began = time.strftime(
            "%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(self.began.get(upload[1].decode(), 0))
        )
        return re.sub(rb"<Initiated>[^<]*", b"<Initiated>" + began.encode(), found[0])

    def stored(self, environ: dict[str, Any], start: Any) -> Iterable[bytes] | None:
        """The bytes of a stored object, or a range of them; None for anything but a plain GET of
        one."""
        from moto.s3.models import s3_backends

        name, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
        query = environ.get("QUERY_STRING", "")
        if not key or query not in ("", "x-id=GetObject") or "HTTP_IF_NONE_MATCH" in environ:
            return None
        backend = s3_backends[ACCOUNT]["aws"]
        found = backend.get_object(name, key) if name in backend.buckets else None
        if found is None or environ.get("HTTP_IF_MATCH", found.etag) != found.etag:
            return None
        begin, end, status = 0, found.size, "200 OK"
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", environ.get("HTTP_RANGE", "")):
            begin, end = (
                int(asked[1]),
                min(found.size, int(asked[2]) + 1 if asked[2] else found.size),
            )
            status = "206 Partial Content"
            if begin >= found.size:
                return refused(start, "InvalidRange", "416 Range Not Satisfiable")
        buffer: Any = found._value_buffer
        with found.lock:
            on_disk = os.dup(buffer.fileno()) if buffer._rolled else None
            data = b"" if on_disk is not None else buffer._file.getvalue()[begin:end]
            if on_disk is not None:
                buffer.flush()
        headers = [
            ("Content-Length", str(end - begin)),
            ("ETag", found.etag),
            ("Last-Modified", found.last_modified_RFC1123),
            ("Accept-Ranges", "bytes"),
            ("Content-Type", "binary/octet-stream"),
        ]
        if (
            found.checksum_value
            and found.multipart is None
            and self.checksums
            and "HTTP_X_AMZ_CHECKSUM_MODE" in environ
        ):
            headers.append(
                (f"x-amz-checksum-{str(found.checksum_algorithm).lower()}", found.checksum_value)
            )
        if status.startswith("206"):
            headers.append(("Content-Range", f"bytes {begin}-{end - 1}/{found.size}"))
        start(status, headers)
        return [data] if on_disk is None else from_disk(on_disk, begin, end)


def turned(text: str) -> str:
    """Every MD5 backwards: an ETag that says nothing of the content."""
    return re.sub(r"\b[0-9a-f]{32}\b", lambda found: found[0][::-1], text)


def from_disk(handle: int, begin: int, end: int) -> Iterator[bytes]:
    try:
        while begin < end:
            data = os.pread(handle, min(1 << 20, end - begin), begin)
            begin += len(data)
            yield data
    finally:
        os.close(handle)


def refused(start: Any, code: str, status: str = "400 Bad Request") -> list[bytes]:
    body = (
        "<?xml version='1.0'"
        f" encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    )
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument(
        "--smallest-part", type=int, default=5 << 20, help="bytes; AWS asks for 5 MiB"
    )
    parser.add_argument("--no-checksums", action="store_true")
    parser.add_argument("--ignores", nargs="*", default=[], help="headers")
    parser.add_argument("--opaque-etags", action="store_true")
    parser.add_argument("--ceph", action="store_true")
    options = parser.parse_args()

    import moto.s3.models
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    moto.s3.models.S3_UPLOAD_PART_MIN_SIZE = options.smallest_part  # type: ignore[attr-defined]
    moto.s3.models.s3_backends[ACCOUNT]["aws"].create_bucket(BUCKET, "us-east-1")
    app = Strict(
        DomainDispatcherApplication(create_backend_app),
        options.log,
        checksums=not options.no_checksums,
        ignores=options.ignores,
        opaque_etags=options.opaque_etags,
        ceph=options.ceph,
    )
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    Quiet.protocol_version = "HTTP/1.1"
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
