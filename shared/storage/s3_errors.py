"""What an S3 server's refusals, and its silence, mean to us: the table from their errors to ours.

Our sentences never quote keys, secrets, signatures or a server's page; the server's own words are quoted only for
codes not in the table, shortened and with our credentials blanked.
"""

from __future__ import annotations

from minio.error import InvalidResponseError, S3Error, ServerError
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, ReadTimeoutError, SSLError

from ..errors import InvalidKey, ObjectMissing, Permanent, ScenefleetError, StorageUnavailable

_MISSING = frozenset({"NoSuchKey", "NoSuchObject"})
_NO_ROOM = frozenset({"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded"})
_BAD_KEY = frozenset(
    {
        "XMinioParentIsObject",
        "XMinioObjectExistsAsDirectory",
        "XMinioInvalidObjectName",
        "XMinioInvalidResourceName",
        "KeyTooLongError",
    }
)
#: Codes that say "later", not "never", whatever their status. NoSuchUpload: the parts were swept while we sent them;
#: the digests: bytes were changed on the way.
_LATER = frozenset(
    {
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "ServiceUnavailable",
        "TooManyRequests",
        "Throttling",
        "InternalError",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "RequestTimeout",
        "IncompleteBody",
        "OperationAborted",
        "NoSuchUpload",
        "XMinioServerNotInitialized",
    }
)
_LATER_STATUS = (408, 429, 499)  # timed out, too many requests, connection lost
_RIGHTS = (
    "give the access key the right to read, write, list and delete in the bucket, "
    "or correct STORAGE_ACCESS_KEY and STORAGE_SECRET_KEY"  # a refused HEAD can't say which of them it is
)
_REFUSED = {
    "AccessDenied": _RIGHTS,
    "AllAccessDisabled": _RIGHTS,
    "InvalidAccessKeyId": "correct STORAGE_ACCESS_KEY and STORAGE_SECRET_KEY",
    "SignatureDoesNotMatch": "correct STORAGE_ACCESS_KEY and STORAGE_SECRET_KEY",
    "AuthorizationHeaderMalformed": "correct STORAGE_REGION",
    "PermanentRedirect": "correct STORAGE_REGION or STORAGE_ENDPOINT",
    "InvalidRegion": "correct STORAGE_REGION",
    "UnauthorizedAccess": _RIGHTS,
    "XMinioInsecureClientRequest": "set STORAGE_SECURE=true",
    "ExpiredToken": "renew the access key",
    "InvalidTokenId": "renew the access key",
}
_QUOTED_CHARACTERS = 200


def translate(
    error: Exception, *, server: str, bucket: str, what: str, secrets: tuple[str, ...]
) -> ScenefleetError:
    """Our error for one that ``minio`` or ``urllib3`` raised.

    Args:
        server: ``host:port``, for the sentence.
        bucket: its real name.
        what: the object or bucket concerned, for the sentence.
        secrets: strings that must not appear in it.
    """
    if isinstance(error, S3Error):
        return _from_code(error, server, bucket, what, secrets)
    if isinstance(error, ServerError):
        return _from_status(error.status_code, server, what)
    if isinstance(error, InvalidResponseError):
        return StorageUnavailable(
            f"{server} answered without S3's XML when asked for {what}: check that STORAGE_ENDPOINT is an S3 server "
            "and that a proxy before it is well"
        )
    if isinstance(error, HTTPError):
        return StorageUnavailable(
            f"the storage server {server} {_silence(error)}: start it or correct STORAGE_ENDPOINT"
        )
    return StorageUnavailable(
        f"{server} answered {what} with something unreadable ({type(error).__name__}): check it"
    )


def _from_code(
    error: S3Error, server: str, bucket: str, what: str, secrets: tuple[str, ...]
) -> ScenefleetError:
    code, status = error.code or "", error.response.status
    if code in _MISSING:
        return ObjectMissing(f"there is no {what}: upload it first")
    if code == "NoSuchBucket":
        return StorageUnavailable(no_bucket(server, bucket))
    if code in _NO_ROOM or status == 507:
        return StorageUnavailable(
            f"{server} has no room for {what} ({code}): free some space or raise its quota"
        )
    if code in _REFUSED:
        return Permanent(f"{server} refuses {what} ({code}): {_REFUSED[code]}")
    if code == "RequestTimeTooSkewed":
        return StorageUnavailable(
            f"{server} finds our clock wrong ({code}): set this machine's clock or the server's"
        )
    if code in _BAD_KEY:
        return InvalidKey(f"{server} can't hold {what} ({code}): choose another key")
    if code in _LATER or status >= 500 or status in _LATER_STATUS:
        return StorageUnavailable(f"{server} can't serve {what} now ({code}): look at its health")
    message = (error.message or "")[:_QUOTED_CHARACTERS]
    for secret in secrets:
        message = message.replace(secret, "***")
    return Permanent(
        f"{server} refuses {what} ({code}, HTTP {status}: {message}): correct the request or the server"
    )


def _from_status(status: int, server: str, what: str) -> ScenefleetError:
    if status == 507:
        return StorageUnavailable(
            f"{server} has no room for {what} (HTTP 507): free some space or raise its quota"
        )
    return StorageUnavailable(f"{server} can't serve {what} now (HTTP {status}): look at its health")


def no_bucket(server: str, bucket: str) -> str:
    """The sentence for a bucket that is not there."""
    return f"{server} has no bucket {bucket!r}: create it with `scenefleet up`, or correct STORAGE_BUCKET_*"


def _silence(error: HTTPError) -> str:
    cause = error.reason if isinstance(error, MaxRetryError) and error.reason is not None else error
    if isinstance(cause, SSLError):
        return "can't be trusted (TLS failed; is STORAGE_SECURE right, and its certificate known here?)"
    if isinstance(cause, ConnectTimeoutError):
        return "can't be reached (no answer to a connection)"
    if isinstance(cause, ReadTimeoutError):
        return "does not answer in time"
    return f"can't be reached ({type(cause).__name__})"
