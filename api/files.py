"""Answers with files: ranges and conditions of RFC 9110, and headers that let no browser take a file for a page."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import secrets
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool as in_thread
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.problems import RangeNotSatisfiable

CHUNK_BYTES = 256 * 1024
#: Ranges that are answered in one response; who asks for more gets the whole file.
MAX_RANGES = 8
MAX_HEADER_CHARS = 400

#: What a browser may play, by extension. Everything else is only saved.
TYPES = {
    "mp4": "video/mp4", "m4v": "video/mp4", "mov": "video/quicktime", "webm": "video/webm", "mkv": "video/x-matroska",
    "avi": "video/x-msvideo", "mpg": "video/mpeg", "mpeg": "video/mpeg", "ts": "video/mp2t", "ogv": "video/ogg",
    "mp3": "audio/mpeg", "m4a": "audio/mp4", "wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg",
}  # fmt: skip
OCTETS = "application/octet-stream"

_RANGE = re.compile(r"(\d{0,19})-(\d{0,19})", re.ASCII)


def content_type(name: str) -> str:
    """The type of a video or sound by its extension; bytes for everything else, HTML above all."""
    return TYPES.get(name.rpartition(".")[2].lower(), OCTETS)


def picture_type(data: bytes) -> str | None:
    """``image/jpeg``, ``image/png`` or ``image/webp`` by the first bytes; None: neither."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def attachment(name: str) -> str:
    """``Content-Disposition`` that saves a file under ``name`` (RFC 6266), whatever characters it has."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


@dataclass(frozen=True)
class Span:
    """Bytes from ``start`` to before ``end``."""

    start: int
    end: int


def read_ranges(header: str, size_bytes: int) -> list[Span]:
    """The bytes that ``Range`` asks for; none: the header does not count, all are sent.

    Raises:
        RangeNotSatisfiable: it is malformed, or all it asks for is beyond the end.
    """
    unit, separator, listed = header.partition("=")
    if not separator or unit.strip().lower() != "bytes":
        return []
    asked = [part.strip() for part in listed.split(",") if part.strip()]
    if len(header) > MAX_HEADER_CHARS or len(asked) > MAX_RANGES:
        return []
    found = [span for part in asked if (span := _span(part, size_bytes)) is not None]
    if not found:
        raise RangeNotSatisfiable(
            f"Range={header[:60]!a} names none of the {size_bytes} bytes: ask for bytes that are there",
            size_bytes=size_bytes,
        )
    ordered = sorted(found, key=lambda span: span.start)
    overlap = any(before.end > after.start for before, after in itertools.pairwise(ordered))
    return [] if overlap else found


def _span(part: str, size_bytes: int) -> Span | None:
    match = _RANGE.fullmatch(part)
    if match is None:
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last or 0), size_bytes)
        return Span(size_bytes - length, size_bytes) if length else None
    start = int(first)
    end = min(int(last) + 1, size_bytes) if last else size_bytes
    return Span(start, end) if start < end else None


class FileResponse(Response):
    """An open file, or what was asked of it; closes it. Holds one chunk in memory."""

    def __init__(
        self, source: int, request: Headers, method: str, kind: str, *, download: str | None
    ) -> None:
        """``source``: a descriptor of a regular file. ``kind``: content type. ``download``: save under this name."""
        self._source, self._method, self._kind = source, method, kind
        self.status_code = 200
        self.background = None
        found = os.fstat(source)
        self._size_bytes = found.st_size
        etag = f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'
        modified = formatdate(found.st_mtime, usegmt=True)
        fields = {"ETag": etag, "Last-Modified": modified, "Accept-Ranges": "bytes"}
        fields["Cache-Control"] = "private, no-cache"
        if download is not None:
            fields["Content-Disposition"] = attachment(download)
        self._parts: list[tuple[bytes, Span]] = [(b"", Span(0, self._size_bytes))]
        self._ending = b""
        if _matches(request.get("if-none-match", ""), etag):
            self.status_code, self._parts = 304, []
        elif method == "GET" and "range" in request and _same(request.get("if-range"), etag, modified):
            try:
                self._choose(read_ranges(request["range"], self._size_bytes), fields)
            except RangeNotSatisfiable:
                os.close(source)
                raise
        if self.status_code != 304:
            fields.setdefault("Content-Type", kind)
            length = sum(len(head) + span.end - span.start for head, span in self._parts) + len(self._ending)
            fields["Content-Length"] = str(length)
        self.init_headers(fields)

    def _choose(self, spans: list[Span], fields: dict[str, str]) -> None:
        if not spans:
            return
        self.status_code = 206
        if len(spans) == 1:
            fields["Content-Range"] = self._content_range(spans[0])
            self._parts = [(b"", spans[0])]
            return
        boundary = secrets.token_hex(12)
        fields["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
        head = f"\r\n--{boundary}\r\nContent-Type: {self._kind}\r\nContent-Range: "
        self._parts = [(f"{head}{self._content_range(span)}\r\n\r\n".encode(), span) for span in spans]
        self._ending = f"\r\n--{boundary}--\r\n".encode()

    def _content_range(self, span: Span) -> str:
        return f"bytes {span.start}-{span.end - 1}/{self._size_bytes}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_gone(receive))
        try:
            start: Message = {"type": "http.response.start", "status": self.status_code}
            await send({**start, "headers": self.raw_headers})
            if self._method == "GET":
                for head, span in self._parts:
                    await send(_body(head))
                    for offset in range(span.start, span.end, CHUNK_BYTES):
                        if gone.done():
                            return
                        size = min(CHUNK_BYTES, span.end - offset)
                        data = await in_thread(os.pread, self._source, size, offset)
                        if len(data) < size:
                            return  # cut off since: the connection is closed, as the length does not fit
                        await send(_body(data))
            await send({"type": "http.response.body", "body": self._ending if self._method == "GET" else b""})
        finally:
            gone.cancel()
            os.close(self._source)


def _body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _matches(header: str, etag: str) -> bool:
    """Whether ``If-None-Match`` names this entity (weak comparison)."""
    tags = (tag.strip().removeprefix("W/") for tag in header.split(","))
    return any(tag in ("*", etag) for tag in tags)


def _same(if_range: str | None, etag: str, modified: str) -> bool:
    """Whether ``If-Range`` lets a range be sent: it is missing, or names this entity (strong comparison)."""
    return if_range is None or if_range.strip() in (etag, modified)
