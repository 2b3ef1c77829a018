"""Amazon S3 as a client on the internet sees it, in front of the plain server of
`tests.support.s3_server`.

A client that is given HTTPS_PROXY and AWS_CA_BUNDLE asks the proxy for a tunnel to
`*.amazonaws.com:443` and finds at its end what Amazon has there: TLS with a certificate for the
host names of S3, a bucket for each virtual host, a region for each bucket, and signatures that are
recomputed with the secret of the key that is named. What passes all that goes on to the plain
server as `/bucket/key`. It runs in threads of the test's process and carries bodies with a
Content-Length only.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import re
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPMessage, parse_headers
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, Literal, Self
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.listener import Listener

Cut = Literal["handshake", "request", "answer"]
HOME = "eu-central-1"  # of every bucket
STS = "https://sts.amazonaws.com/doc/2011-06-15/"
REGIONS = (HOME, "us-east-1", "us-west-2")
HOST = re.compile(r"(?:(?P<bucket>.+)\.)?s3(?:\.(?P<region>[a-z]+-[a-z]+-\d))?\.amazonaws\.com")
SIGNED = re.compile(
    r"AWS4-HMAC-SHA256"
    r" Credential=(?P<key>[^/]+)/(?P<date>\d{8})/(?P<region>[^/]+)/s3/aws4_request, "
    r"SignedHeaders=(?P<names>[^,]+), Signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass(frozen=True)
class Key:
    """What belongs to an access key. `expired`: it was good once."""

    secret: str
    token: str | None = None
    expired: bool = False


@dataclass(frozen=True)
class Request:
    """One request at the end of a tunnel.

    Attributes:
        server_name: that TLS asked for.
        tls: its version.
        bucket: of a virtual host; None if the path names it.
        target: path and query as they were sent.
        key, region: of the signature's credential scope.
        payload: what the signature says of the body.
        status: of the answer.
        code: of a refusal that the plain server had no part in.
    """

    server_name: str | None
    tls: str | None
    host: str
    bucket: str | None
    method: str
    target: str
    key: str
    region: str
    payload: str
    status: int
    code: str | None


class Amazon(Listener):
    """A proxy on a free port of the loopback interface whose tunnels all end in S3.

    Attributes:
        url: for HTTPS_PROXY.
        bundle: the CA certificate, for AWS_CA_BUNDLE.
        keys: the access keys there are.
        tells_region: whether a refusal of a request in the wrong region says which is right.
        cuts: what breaks off and how often: "handshake" after the client's first message, "request"
            in the body of a PUT, "answer" in the body of what was asked for by GET; the connection
            ends without a word of TLS.
        tunnels: the hosts that were asked for.
        requests: in order of their answers.
    """

    def __init__(self, upstream: str, folder: Path, keys: dict[str, Key]) -> None:
        super().__init__()
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname or "", parts.port or 80)
        self.bundle, certificate = folder / "ca.pem", folder / "server.pem"
        names = [
            "s3.amazonaws.com",
            "*.s3.amazonaws.com",
            *(f"{star}s3.{region}.amazonaws.com" for region in REGIONS for star in ("", "*.")),
        ]
        make_certificates(self.bundle, certificate, names)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._names: dict[int, str | None] = {}
        self._context.sni_callback = lambda end, name, _context: self._names.update({id(end): name})
        self._keys = keys
        self._lock = threading.Lock()
        self.reset()
        self.listen()

    def reset(self) -> None:
        """As it was in the beginning."""
        self.keys = dict(self._keys)
        self.tells_region = True
        self.cuts: Counter[Cut] = Counter()
        self.tunnels: list[str] = []
        self.requests: list[Request] = []

    def serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, EOFError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked = b""
            while not asked.endswith(b"\r\n\r\n"):  # a client says no more before the answer
                if not (data := client.recv(4096)):
                    return
                asked += data
            method, target, _ = asked.decode("latin-1").split(" ", 2)
            if method != "CONNECT" or not target.endswith(".amazonaws.com:443"):
                client.sendall(
                    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
                return
            with self._lock:
                self.tunnels.append(target.removesuffix(":443"))
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            if self._is_cut("handshake"):
                client.recv(1 << 16)
                return
            with (
                self._context.wrap_socket(client, server_side=True) as end,
                end.makefile("rb") as stream,
            ):
                server_name, upstream = (
                    self._names.pop(id(end), None),
                    HTTPConnection(*self.upstream),
                )
                with suppress(ssl.SSLError):
                    while self._carry(end, stream, upstream, server_name):
                        pass
                upstream.close()

    def _is_cut(self, what: Cut) -> bool:
        with self._lock:
            self.cuts[what] -= (cut := self.cuts[what] > 0)
            return cut

    def _carry(
        self,
        end: ssl.SSLSocket,
        stream: BinaryIO,
        upstream: HTTPConnection,
        server_name: str | None,
    ) -> bool:
        """One request and its answer; whether the connection can be used again."""
        first = stream.readline().decode("latin-1")
        if not first:
            return False
        method, target, _ = first.split(" ", 2)
        headers = parse_headers(stream)
        host, signed = headers["Host"], SIGNED.fullmatch(headers.get("Authorization", ""))
        place = HOST.fullmatch(host)
        bucket = place["bucket"] if place else None
        is_expecting = headers.get("Expect") == "100-continue"
        code, status, region = self._refusal(method, target, headers, place, signed)
        data = b""
        if not (code and is_expecting):  # then the client keeps its body
            if is_expecting:
                end.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = int(headers.get("Content-Length", 0))
            if method == "PUT" and length and self._is_cut("request"):
                stream.read(length // 2)
                return False
            data = stream.read(length)
            given = headers.get("x-amz-content-sha256", "")
            if (
                not code
                and given != "UNSIGNED-PAYLOAD"
                and given != hashlib.sha256(data).hexdigest()
            ):
                code, status = "XAmzContentSHA256Mismatch", 400
        if code:
            answer = refusal(code, region)
            fields = [
                ("Content-Type", "application/xml"),
                ("Connection", "close"),
                *([("x-amz-bucket-region", region)] if region else []),
            ]
        else:
            upstream.putrequest(
                method, f"/{bucket}{target}" if bucket else target, skip_accept_encoding=True
            )
            for name, value in headers.items():
                if name.lower() not in ("host", "expect", "connection"):
                    upstream.putheader(name, value)
            upstream.endheaders(data)
            got = upstream.getresponse()
            status, answer = got.status, got.read()
            fields = [
                field
                for field in got.getheaders()
                if field[0].lower() not in ("content-length", "connection", "transfer-encoding")
            ]
            if method == "HEAD" and (size := got.getheader("Content-Length")):
                fields.append(("Content-Length", size))
        with self._lock:
            self.requests.append(
                Request(
                    server_name,
                    end.version(),
                    host,
                    bucket,
                    method,
                    target,
                    signed["key"] if signed else "",
                    signed["region"] if signed else "",
                    headers.get("x-amz-content-sha256", ""),
                    status,
                    code,
                )
            )
        if method != "HEAD":
            fields.append(("Content-Length", str(len(answer))))
        head = (
            f"HTTP/1.1 {status} Said\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in fields)
            + "\r\n"
        )
        if method == "GET" and status in (200, 206) and answer and self._is_cut("answer"):
            end.sendall(head.encode("latin-1") + answer[: len(answer) // 2])
            return False
        end.sendall(head.encode("latin-1") + (b"" if method == "HEAD" else answer))
        return not code

    def _refusal(
        self,
        method: str,
        target: str,
        headers: HTTPMessage,
        place: re.Match[str] | None,
        signed: re.Match[str] | None,
    ) -> tuple[str | None, int, str | None]:
        """Code and status of what Amazon answers to a request that it does not look into, and the
        bucket's region if it says that."""
        if place is None:
            return "InvalidURI", 400, None
        if "Transfer-Encoding" in headers:
            return "NotImplemented", 501, None
        if signed is None:
            return "AccessDenied", 403, None
        region = HOME if self.tells_region else None
        if (place["region"] or HOME) != HOME:
            return "PermanentRedirect", 301, region
        if signed["region"] != HOME:
            return "AuthorizationHeaderMalformed", 400, region
        key = self.keys.get(signed["key"])
        if key is None:
            return "InvalidAccessKeyId", 403, None
        if key.token != headers.get("x-amz-security-token"):
            return "InvalidToken", 400, None
        if key.expired:
            return "ExpiredToken", 400, None
        if signed["signature"] != signature(method, target, headers, signed, key.secret):
            return "SignatureDoesNotMatch", 403, None
        return None, 200, None


def signature(
    method: str, target: str, headers: HTTPMessage, signed: re.Match[str], secret: str
) -> str:
    """What AWS Signature Version 4 must be."""
    path, _, query = target.partition("?")
    pairs = sorted(
        (pair.partition("=")[0], pair.partition("=")[2]) for pair in query.split("&") if pair
    )
    lines = [f"{name}:{' '.join(headers[name].split())}" for name in signed["names"].split(";")]
    canonical = "\n".join(
        [
            method,
            path,
            "&".join(f"{name}={value}" for name, value in pairs),
            *lines,
            "",
            signed["names"],
            headers["x-amz-content-sha256"],
        ]
    )
    scope = [signed["date"], signed["region"], "s3", "aws4_request"]
    text = "\n".join(
        [
            "AWS4-HMAC-SHA256",
            headers["x-amz-date"],
            "/".join(scope),
            hashlib.sha256(canonical.encode()).hexdigest(),
        ]
    )
    key = f"AWS4{secret}".encode()
    for part in (*scope, text):
        key = hmac.digest(key, part.encode(), "sha256")
    return key.hex()


def refusal(code: str, region: str | None) -> bytes:
    named = (
        f"<Region>{region}</Region>" if region and code == "AuthorizationHeaderMalformed" else ""
    )
    return (
        "<?xml version='1.0' encoding='UTF-8'?>"
        f"<Error><Code>{code}</Code><Message>refused</Message>{named}</Error>"
    ).encode()


def make_certificates(authority: Path, server: Path, names: Sequence[str]) -> None:
    """A CA's certificate in one file, and in the other a certificate that it has signed for these
    host names, with its key."""
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the tests' CA")])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]

    def build(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=30))
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()),
                critical=False,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
        )

    ca = (
        build(issuer, keys[0])
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(keys[0], hashes.SHA256())
    )
    leaf = (
        build(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]), keys[1])
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(keys[0], hashes.SHA256())
    )
    authority.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    server.write_bytes(
        leaf.public_bytes(serialization.Encoding.PEM)
        + keys[1].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def document(name: str, key: Key, minutes: float, *, token: str = "Token") -> str:
    """Credentials that expire, as a container's endpoint gives them; a `credential_process` says
    SessionToken."""
    expiration = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    return json.dumps(
        {
            "Version": 1,
            "AccessKeyId": name,
            "SecretAccessKey": key.secret,
            token: key.token,
            "Expiration": expiration.isoformat(),
        }
    )


class Service:
    """A small HTTP server on a free port, in a thread. `answer` says status, media type and body to
    each request."""

    def __init__(self) -> None:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, kind, body = service.answer(self.headers)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, headers: Message) -> tuple[int, str, bytes]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Role(Service):
    """The credentials endpoint of a container: each answer has another key, with so little time
    left that the next request asks again.

    Attributes:
        url: for AWS_CONTAINER_CREDENTIALS_FULL_URI.
        password: that it wants as Authorization, from AWS_CONTAINER_AUTHORIZATION_TOKEN.
        keys: that it has given out.
        down: whether it answers 503.
    """

    def __init__(self, amazon: Amazon, password: str) -> None:
        self.amazon, self.password, self.keys, self.down = amazon, password, dict[str, Key](), False
        self._lock = threading.Lock()
        super().__init__()

    def answer(self, headers: Message) -> tuple[int, str, bytes]:
        if self.down or headers["Authorization"] != self.password:
            return 503 if self.down else 401, "text/plain", b""
        with self._lock:
            name = f"ROLE{len(self.keys)}"
            self.amazon.keys[name] = self.keys[name] = key = Key(
                f"secret-of-{name}", f"token-of-{name}"
            )
        return 200, "application/json", document(name, key, 5).encode()


class TokenService(Service):
    """STS: it gives one key to whoever takes on a role, or refuses, or is overloaded. `url` is for
    AWS_ENDPOINT_URL_STS."""

    def __init__(self, name: str, key: Key, how: str) -> None:
        self.name, self.key, self.how = name, key, how
        super().__init__()

    def answer(self, headers: Message) -> tuple[int, str, bytes]:
        if self.how != "given":
            code, status = ("AccessDenied", 403) if self.how == "refused" else ("Throttling", 400)
            text = (
                f"<Error><Type>Sender</Type><Code>{code}</Code><Message>may not</Message></Error>"
            )
            answer = f'<ErrorResponse xmlns="{STS}">{text}<RequestId>1</RequestId></ErrorResponse>'
            return status, "text/xml", answer.encode()
        given = json.loads(document(self.name, self.key, 60, token="SessionToken"))
        fields = "".join(
            f"<{field}>{given[field]}</{field}>"
            for field in ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")
        )
        result = f"<AssumeRoleResult><Credentials>{fields}</Credentials></AssumeRoleResult>"
        return (
            200,
            "text/xml",
            f'<AssumeRoleResponse xmlns="{STS}">{result}</AssumeRoleResponse>'.encode(),
        )


@contextmanager
def in_front_of(upstream: str, folder: Path, keys: dict[str, Key]) -> Iterator[Amazon]:
    amazon = Amazon(upstream, folder, keys)
    try:
        yield amazon
    finally:
        amazon.close()
