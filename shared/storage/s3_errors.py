"""What an S3 server's refusals, and its silence, mean to us: the table from their errors to ours.

Our sentences never quote keys, secrets, signatures or a server's page; the server's own words are quoted only for
codes not in the table, shortened and with our credentials blanked.
"""

from __future__ import annotations

from minio.error import InvalidResponseError, S3Error, ServerError
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, ReadTimeoutError, SSLError

from ..errors import InvalidKey, ObjectMissing, Permanent, ScenefleetError, StorageUnavailable

_Meaning = tuple[type[ScenefleetError], str]

_MISSING: _Meaning = (ObjectMissing, "there is no {what}: upload it first")
_NO_BUCKET: _Meaning = (
    StorageUnavailable,
    "{server} has no bucket {bucket!r}: create it with `scenefleet up`, or correct STORAGE_BUCKET_*",
)
_NO_ROOM: _Meaning = (
    StorageUnavailable,
    "{server} has no room for {what} ({code}): free some space or raise its quota",
)
_CLOCK: _Meaning = (
    StorageUnavailable,
    "{server} finds our clock wrong ({code}): set this machine's clock or the server's",
)
_BAD_KEY: _Meaning = (InvalidKey, "{server} can't hold {what} ({code}): choose another key")
_LATER: _Meaning = (StorageUnavailable, "{server} can't serve {what} now ({code}): look at its health")
_OTHER: _Meaning = (
    Permanent,
    "{server} refuses {what} ({code}, HTTP {status}: {message}): correct the request or the server",
)


def _refused(remedy: str) -> _Meaning:
    return Permanent, f"{{server}} refuses {{what}} ({{code}}): {remedy}"


_RIGHTS = _refused(
    "give the access key the right to read, write, list and delete in the bucket, "
    "or correct STORAGE_ACCESS_KEY and STORAGE_SECRET_KEY"  # a refused HEAD can't say which of them it is
)
_CREDENTIALS = _refused("correct STORAGE_ACCESS_KEY and STORAGE_SECRET_KEY")
_BY_CODE: dict[str, _Meaning] = {
    "NoSuchKey": _MISSING,
    "NoSuchObject": _MISSING,
    "NoSuchBucket": _NO_BUCKET,
    "XMinioStorageFull": _NO_ROOM,
    "XMinioAdminBucketQuotaExceeded": _NO_ROOM,
    "QuotaExceeded": _NO_ROOM,
    "RequestTimeTooSkewed": _CLOCK,
    "AccessDenied": _RIGHTS,
    "AllAccessDisabled": _RIGHTS,
    "UnauthorizedAccess": _RIGHTS,
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "AuthorizationHeaderMalformed": _refused("correct STORAGE_REGION"),
    "PermanentRedirect": _refused("correct STORAGE_REGION or STORAGE_ENDPOINT"),
    "InvalidRegion": _refused("correct STORAGE_REGION"),
    "XMinioInsecureClientRequest": _refused("set STORAGE_SECURE=true"),
    "ExpiredToken": _refused("renew the access key"),
    "InvalidTokenId": _refused("renew the access key"),
    "XMinioParentIsObject": _BAD_KEY,
    "XMinioObjectExistsAsDirectory": _BAD_KEY,
    "XMinioInvalidObjectName": _BAD_KEY,
    "XMinioInvalidResourceName": _BAD_KEY,
    "KeyTooLongError": _BAD_KEY,
    # These say "later", not "never", whatever their status.
    "SlowDown": _LATER,
    "SlowDownRead": _LATER,
    "SlowDownWrite": _LATER,
    "ServiceUnavailable": _LATER,
    "TooManyRequests": _LATER,
    "Throttling": _LATER,
    "InternalError": _LATER,
    "RequestTimeout": _LATER,
    "IncompleteBody": _LATER,
    "OperationAborted": _LATER,
    "XMinioServerNotInitialized": _LATER,
    # Bytes were changed on the way.
    "BadDigest": _LATER,
    "XAmzContentSHA256Mismatch": _LATER,
    # The parts were swept while we sent them.
    "NoSuchUpload": _LATER,
}
_LATER_STATUS = (408, 429, 499)  # timed out, too many requests, connection lost
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
        code, status = error.code or "", error.response.status
        message = (error.message or "")[:_QUOTED_CHARACTERS]
        for secret in secrets:
            message = message.replace(secret, "***")
        later = status >= 500 or status in _LATER_STATUS
        kind, sentence = _NO_ROOM if status == 507 else _BY_CODE.get(code) or (_LATER if later else _OTHER)
        return kind(
            sentence.format(
                server=server, bucket=bucket, what=what, code=code, status=status, message=message
            )
        )
    if isinstance(error, ServerError):
        kind, sentence = _NO_ROOM if error.status_code == 507 else _LATER
        return kind(sentence.format(server=server, what=what, code=f"HTTP {error.status_code}"))
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


def no_bucket(server: str, bucket: str) -> StorageUnavailable:
    """The error for a bucket that is not there."""
    return StorageUnavailable(_NO_BUCKET[1].format(server=server, bucket=bucket))


def _silence(error: HTTPError) -> str:
    cause = error.reason if isinstance(error, MaxRetryError) and error.reason is not None else error
    if isinstance(cause, SSLError):
        return "can't be trusted (TLS failed; is STORAGE_SECURE right, and its certificate known here?)"
    if isinstance(cause, ConnectTimeoutError):
        return "can't be reached (no answer to a connection)"
    if isinstance(cause, ReadTimeoutError):
        return "does not answer in time"
    return f"can't be reached ({type(cause).__name__})"
