"""Reads from a file's first bytes and boxes what FFmpeg does not tell: which flavour its container is, where its index stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shared.playback import Index

#: Most top-level boxes that are looked at.
_MOST_BOXES = 10_000
#: The EBML element with the document type (RFC 8794, 11.2.8), within the file's first bytes.
_DOC_TYPE, _HEAD_BYTES = b"\x42\x82", 4096


def read_flavour(path: Path, container: str) -> str:
    """Return mp4, mov, webm, matroska, or FFmpeg's name of another container."""
    names = container.split(",")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if "mp4" in names:
        # Files without a brand are older than MP4.
        return "mp4" if head[4:8] == b"ftyp" and head[8:12] != b"qt  " else "mov"
    if "matroska" in names:
        _, found, rest = head.partition(_DOC_TYPE)
        return "webm" if found and rest[1:5] == b"webm" else "matroska"
    return names[0]


def read_index(path: Path) -> Index | None:
    """Return where an MP4 or MOV file has its index; None: it has none at its top level."""
    has_index = has_content = False
    with path.open("rb") as file:
        for kind in boxes(file, path.stat().st_size):
            if kind == b"moof":
                return "fragments"
            if kind == b"moov":
                if has_content:
                    return "end"
                has_index = True
            elif kind == b"mdat":
                if has_index:
                    return "start"
                has_content = True
    return "start" if has_index else None


def boxes(file: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    """Yield the types of the top-level boxes of an ISO base media file (ISO/IEC 14496-12, 4.2), up to the first damage."""
    offset = 0
    for _ in range(_MOST_BOXES):
        file.seek(offset)
        header = file.read(16)
        if len(header) < 8:
            return
        yield header[4:8]
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8 or offset + length > size_bytes:
            return
        offset += length
