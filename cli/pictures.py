"""Check pictures before they are uploaded."""

from __future__ import annotations

from pathlib import Path

from shared.contracts import MAX_PICTURE_BYTES
from shared.errors import InvalidRequest

_CONTENT_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}


def check_picture(path: Path) -> str:
    """The content type of a picture, by its name.

    Raises:
        InvalidRequest: no file, not a picture by its name, or too large.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no file"
        raise InvalidRequest(f"{str(path)!r} is {found}: name a JPEG, PNG or WebP")
    kind = _CONTENT_TYPES.get(path.suffix.lower())
    if kind is None:
        raise InvalidRequest(f"{str(path)!r} is no JPEG, PNG or WebP by its name: convert it")
    size = path.stat().st_size
    if size > MAX_PICTURE_BYTES:
        limit = f"more than {MAX_PICTURE_BYTES:,}"
        raise InvalidRequest(f"{str(path)!r} has {size:,} bytes, {limit}: make it smaller")
    return kind
