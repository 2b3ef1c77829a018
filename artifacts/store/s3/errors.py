"""What the errors of boto3 and of S3 servers mean, in words that name a remedy."""

from __future__ import annotations

import ssl
import traceback

from botocore import credentials
from botocore import exceptions as aws
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as ConnectionBroken

from configs.errors import ConfigError, LmflowsError, TransferError

# ClientError codes by what one can do about them: AWS, MinIO, Ceph and others use the same names
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


def code_of(error: aws.ClientError) -> str:
    """The server's name for what is wrong; empty if it gives none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: aws.ClientError) -> int:
    """The HTTP status; 0 if there is none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def may_pass(error: aws.ClientError) -> bool:
    """Whether the same request can succeed a little later."""
    status = status_of(error)
    return code_of(error) in TRY_AGAIN or (status >= 500 and status != 501) or status in (408, 429)


def is_absent(error: aws.ClientError) -> bool:
    """Whether there is no such object."""
    return code_of(error) in ABSENT


def is_refused_condition(error: aws.ClientError) -> bool:
    """Whether what If-Match or If-None-Match asks for does not hold."""
    return code_of(error) == "PreconditionFailed" or status_of(error) == 412


def is_unknown(error: aws.ClientError) -> bool:
    """Whether the server does not know such a request, or a condition in it."""
    return code_of(error) == "NotImplemented" or status_of(error) == 501


def can_be_explained(error: Exception) -> bool:
    """Whether an error is one that boto3 raises, and not a mistake of ours."""
    known = (aws.BotoCoreError, aws.ClientError, ConnectionBroken, *UNREADABLE)
    return isinstance(error, known) or is_of_credentials(error)


def is_of_credentials(error: BaseException) -> bool:
    """Whether it was raised while botocore looked for credentials or renewed them, in the middle of
    any request. Its providers let through what they meet: an OSError of a credential_process that
    is gone, a ValueError of what it printed, a RuntimeError if all have expired."""
    return any(
        frame.f_code.co_filename == credentials.__file__
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def explain(error: Exception, where: str, what: str = "") -> LmflowsError:
    """The error that a user can act on. TransferError is what trying again may cure.

    Args:
        where: the location of the store.
        what: what was being done, such as "reading KEY".
    """
    doing = f", {what}" if what else ""
    if isinstance(error, NO_CREDENTIALS) or (is_of_credentials(error) and not _passes(error)):
        # a process's words have line ends
        return ConfigError(
            f"no usable AWS credentials ({' '.join(str(error).split())}){doing}",
            where=where,
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, fill ~/.aws, or"
            " run where there is an instance role",
        )
    if isinstance(error, aws.ClientError):
        return _refused(error, where, doing)
    if isinstance(error, aws.SSLError) and not _broke_off(error):
        return ConfigError(
            f"no trusted TLS connection ({error}){doing}",
            where=where,
            hint="set AWS_CA_BUNDLE to the server's CA certificate, or write http:// if the server"
            " speaks no TLS",
        )
    unreadable = isinstance(error, (*UNREADABLE, aws.FlexibleChecksumError))
    if unreadable and not isinstance(error, aws.ValidationError):
        return TransferError(
            f"the server's answer cannot be read or was changed on the way ({error}){doing}",
            where=where,
            hint="run again: what has been transferred is kept; if it stays, this is no S3 server,"
            " or a proxy changes answers",
        )
    if isinstance(error, BROKEN_OFF):
        return TransferError(
            f"the connection failed ({error}){doing}",
            where=where,
            hint="check that the server is up and the endpoint right, then run again: what has been"
            " transferred is kept",
        )
    return ConfigError(
        f"the request could not be made ({error}){doing}",
        where=where,
        hint="check the location, the region and ~/.aws/config",
    )


def _passes(error: Exception) -> bool:
    if isinstance(error, aws.ClientError):
        return may_pass(error)
    return isinstance(error, BROKEN_OFF)


def _broke_off(error: BaseException) -> bool:
    """Whether TLS ended because the connection did: nothing that a certificate or a setting would
    cure."""
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and _broke_off(cause)


def _refused(error: aws.ClientError, where: str, doing: str) -> LmflowsError:
    """What a server's refusal means."""
    code = code_of(error)
    message = error.response.get("Error", {}).get("Message") or f"HTTP {status_of(error)}"
    said = f"{code}: {message}{doing}"
    if may_pass(error) and not _needs_somebody(code):
        return TransferError(
            f"the server failed or is overloaded ({said})",
            where=where,
            hint="run again: what has been transferred is kept",
        )
    meaning, hint = _meaning_of(code, status_of(error))
    return ConfigError(f"{meaning} ({said})", where=where, hint=hint)


def _needs_somebody(code: str) -> bool:
    """Whether trying again is of no use, whatever the HTTP status is."""
    return code == "NoSuchBucket" or code in CREDENTIALS or code in WRONG_REGION


def _meaning_of(code: str, status: int) -> tuple[str, str]:
    """What a refusal means, and what to do about it."""
    if code == "NoSuchBucket":
        return (
            "there is no such bucket",
            "create it, or correct the bucket's name or the endpoint",
        )
    if code in CREDENTIALS:
        return (
            "the server refuses the credentials",
            "renew or correct them (environment, ~/.aws or role), and check this machine's clock",
        )
    if code in WRONG_REGION:
        return (
            "the bucket is in another region",
            "append ?region=REGION to the location, or set AWS_REGION; if the endpoint redirects,"
            " name where to (https://...)",
        )
    if code in FORBIDDEN or status in (401, 403):
        return (
            "the server refuses access",
            "the role needs s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload"
            " and s3:ListMultipartUploadParts below the prefix, s3:ListBucket and"
            " s3:ListBucketMultipartUploads on the bucket",
        )
    if code == "400":  # to a HEAD there is no answer that says why
        return (
            "the server refuses the request without a reason",
            "mostly the credentials have expired: renew them; or the bucket is in another region:"
            " append ?region=REGION",
        )
    return (
        "the server refuses the request",
        "check the location; if it is right, this server does not speak enough of S3",
    )
