"""Reads the headers of tus 1.0 (https://tus.io/protocols/resumable-upload), with its extensions creation,
creation-with-upload, expiration, checksum and termination. Pure functions.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import uuid
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime

from api.problems import BadRequest, ChecksumMismatch, UnsupportedMedia, UnsupportedVersion
from shared.contracts import ProcessVideo
from shared.contracts.base import parse
from shared.errors import InvalidRequest, LimitExceeded
from shared.storage import upload_key

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,expiration,checksum,termination"
CHECKSUMS = ("sha1", "sha256")
CONTENT_TYPE = "application/offset+octet-stream"
MAX_METADATA_BYTES = 4096

_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
_NAME = re.compile(r"[!-+\--~]{1,100}", re.ASCII)  # printable ASCII without blanks and commas


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What an upload is: the request that is sent when it is complete."""

    video_id: str
    storage_key: str
    priority: int


def read_metadata(header: str, user_id: str) -> Metadata:
    """The fields filename, video_id and priority of ``Upload-Metadata``; all may be missing, others don't count.

    Raises:
        InvalidRequest: the header or a field is not acceptable.
    """
    fields = _decode(header)
    try:
        priority = int(fields.get("priority", b"0"))
        filename = fields.get("filename", b"").decode() or "video"
        video_id = fields.get("video_id", b"").decode() or uuid.uuid4().hex
    except UnicodeDecodeError:
        raise InvalidRequest("Upload-Metadata has a field that is not UTF-8: send text as UTF-8") from None
    except ValueError:
        raise InvalidRequest("Upload-Metadata: priority is not a number: send 0 to 9") from None
    storage_key = upload_key(user_id, video_id, filename)
    request = {"user_id": user_id, "video_id": video_id, "storage_key": storage_key, "priority": priority}
    parse(ProcessVideo, request)
    return Metadata(video_id=video_id, storage_key=storage_key, priority=priority)


def _decode(header: str) -> dict[str, bytes]:
    if len(header) > MAX_METADATA_BYTES:
        raise InvalidRequest(f"Upload-Metadata has {len(header)} bytes: send at most {MAX_METADATA_BYTES}")
    fields: dict[str, bytes] = {}
    for pair in filter(None, (part.strip() for part in header.split(","))):
        name, _, value = pair.partition(" ")
        if not _NAME.fullmatch(name) or name in fields:
            raise InvalidRequest(f"Upload-Metadata: {name[:40]!a} is no name, or is there twice: correct it")
        try:
            fields[name] = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest(f"Upload-Metadata: the value of {name} is not Base64: encode it") from None
    return fields


def read_length(header: str, max_bytes: int) -> int:
    """The size of the file in bytes, from ``Upload-Length``.

    Raises:
        BadRequest: it is no number.
        InvalidRequest: it is 0.
        LimitExceeded: it is more than ``max_bytes``.
    """
    size_bytes = _number("Upload-Length", header)
    if size_bytes == 0:
        raise InvalidRequest("Upload-Length=0: an empty file is no video, choose another one")
    if size_bytes > max_bytes:
        raise LimitExceeded(
            f"the file has {size_bytes} bytes, at most {max_bytes} are allowed (MAX_VIDEO_BYTES): send a smaller one"
        )
    return size_bytes


def read_offset(header: str) -> int:
    """Where the body's bytes belong, from ``Upload-Offset``.

    Raises:
        BadRequest: it is no number.
    """
    return _number("Upload-Offset", header)


def _number(name: str, header: str) -> int:
    if not _NUMBER.fullmatch(header):
        raise BadRequest(f"{name} is {header[:40]!a}: send a number of bytes")
    return int(header)


def require_version(header: str) -> None:
    """Raises UnsupportedVersion unless the client speaks tus 1.0."""
    if header != VERSION:
        raise UnsupportedVersion(f"Tus-Resumable is {header[:20]!a}: use a client of tus {VERSION}")


def require_content_type(header: str | None) -> None:
    """Raises UnsupportedMedia unless the body is said to be bytes of an upload."""
    if (header or "").partition(";")[0].strip().lower() != CONTENT_TYPE:
        raise UnsupportedMedia(f"the body's content type is {(header or '')[:60]!a}: send {CONTENT_TYPE}")


@dataclass(frozen=True)
class Checksum:
    """What the body of a PATCH is said to be."""

    algorithm: str
    digest: bytes

    def check(self, data: bytes) -> None:
        """Raises ChecksumMismatch for other bytes."""
        if hashlib.new(self.algorithm, data).digest() != self.digest:
            raise ChecksumMismatch(
                f"the {self.algorithm} of the {len(data)} bytes that came is another one: send them again"
            )


def read_checksum(header: str) -> Checksum | None:
    """The checksum of the body, from ``Upload-Checksum``; empty: there is none.

    Raises:
        BadRequest: it is malformed, or of an algorithm that is not offered.
    """
    if not header:
        return None
    algorithm, _, value = header.partition(" ")
    if algorithm not in CHECKSUMS:
        raise BadRequest(f"Upload-Checksum: {algorithm[:20]!a} is not one of {', '.join(CHECKSUMS)}")
    try:
        digest = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != hashlib.new(algorithm).digest_size:
        raise BadRequest(f"Upload-Checksum: the value is no {algorithm} in Base64: encode the digest")
    return Checksum(algorithm, digest)


def http_date(when: datetime) -> str:
    """A time (UTC) as HTTP headers have it."""
    return format_datetime(when, usegmt=True)
