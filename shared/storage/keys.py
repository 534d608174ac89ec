"""Checks storage keys, and builds the fleet's own.

A key comes from outside (the ``storage_key`` of a request, the name of an uploaded file), so it is checked here once
and refused rather than repaired: nothing this module accepts can leave its bucket, on a folder or on S3, and every
key means the same object on both. Pure functions; imports nothing but the errors.
"""

from __future__ import annotations

import re
import unicodedata

from ..errors import InvalidKey

MAX_KEY_BYTES = 512
MAX_SEGMENT_BYTES = 200  # below every file system's limit of 255, with room for our temporary suffixes

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_SHOWN_CHARACTERS = 80
# Controls, lone surrogates and line separators; format characters (emoji joiners, ...) are part of real file names.
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
# Marks that reorder the text around them: a name could look like another one in every list we print.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def check_key(key: str) -> str:
    """Return ``key`` unchanged if it may name an object.

    A key is 1 to 512 bytes of UTF-8 in normal form C: segments of 1 to 200 bytes, separated by ``/``, none of them
    ``.`` or ``..``; not blank, no leading or trailing slash, no backslash, no control character, no leading dot.

    Raises:
        InvalidKey: says which rule the key breaks.
    """
    if not isinstance(key, str):
        raise InvalidKey(f"a storage key must be a string, not {type(key).__name__}: send the object's key")
    fault = _find_fault(key)
    if fault is not None:
        raise InvalidKey(f"storage key {_shown(key)} is not acceptable: {fault}")
    return key


def is_key(key: str) -> bool:
    """Whether ``key`` may name an object."""
    return _find_fault(key) is None


def check_prefix(prefix: str) -> str:
    """Return ``prefix`` unchanged if keys can begin with it: empty, a key, or a key followed by one ``/``.

    Raises:
        InvalidKey: no acceptable key begins like this.
    """
    if prefix != "":
        check_key(prefix.removesuffix("/") if isinstance(prefix, str) else prefix)
    return prefix


def require_prefix(key: str, prefix: str) -> str:
    """Return ``key`` unchanged if it is acceptable and is under the folder ``prefix`` (which ends with ``/``).

    Raises:
        InvalidKey: the key is not acceptable or is outside ``prefix``, or ``prefix`` does not end with ``/``.
    """
    if not prefix.endswith("/"):
        raise InvalidKey(f"prefix {_shown(prefix)} must end with '/', or it would also match its neighbours")
    check_prefix(prefix)
    if not check_key(key).startswith(prefix):
        raise InvalidKey(
            f"storage key {_shown(key)} is outside {_shown(prefix)}: use a key that begins with it"
        )
    return key


def upload_key(user_id: str, video_id: str, filename: str) -> str:
    """The key of a user's source video: ``uploads/{user_id}/{video_id}/{filename made safe}``.

    Only the last part of ``filename`` counts (both slashes separate); characters that a key can't contain become ``_``; a name
    that is too long loses its middle, not its extension.

    Raises:
        InvalidKey: an id is not 1 to 64 of ``A-Z a-z 0-9 _ -``.
    """
    return check_key(f"uploads/{_id(user_id)}/{_id(video_id)}/{_safe_name(filename)}")


def sidecar_key(user_id: str, video_id: str, scene_id: str, revision: int) -> str:
    """The key of one revision of a scene's sidecar: ``sidecars/{user_id}/{video_id}/{scene_id}.r{revision}.json``.

    Raises:
        InvalidKey: an id is not 1 to 64 of ``A-Z a-z 0-9 _ -``, or the revision is negative.
    """
    if revision < 0:
        raise InvalidKey(f"a sidecar's revision can't be negative, but is {revision}: count from 0")
    return check_key(f"sidecars/{_id(user_id)}/{_id(video_id)}/{_id(scene_id)}.r{revision}.json")


def photo_key(user_id: str, person_id: str, timestamp: int, extension: str) -> str:
    """The key of a person's photo: ``faces/{user_id}/{person_id}/photo_{timestamp}.{extension}``.

    Raises:
        InvalidKey: an id is not 1 to 64 of ``A-Z a-z 0-9 _ -``.
    """
    return check_key(f"faces/{_id(user_id)}/{_id(person_id)}/photo_{timestamp}.{extension}")


def attempt_prefix(role: str, user_id: str, video_id: str, job_id: str, attempt: int) -> str:
    """The folder that only this attempt of this job writes to: ``{role}/{user_id}/{video_id}/{job_id}.{attempt}/``.

    Raises:
        InvalidKey: an id is not 1 to 64 of ``A-Z a-z 0-9 _ -``, or the attempt is negative.
    """
    if attempt < 0:
        raise InvalidKey(f"an attempt can't be negative, but is {attempt}: count from 0")
    return check_prefix(f"{_id(role)}/{_id(user_id)}/{_id(video_id)}/{_id(job_id)}.{attempt}/")


def _find_fault(key: str) -> str | None:
    """The first rule that ``key`` breaks, as the end of a sentence; None if it breaks none."""
    if not key.strip():
        return "it is empty or blank"
    for character in key:
        if _is_forbidden(character):
            return f"it contains the character U+{ord(character):04X}"
    if "\\" in key:
        return "it contains a backslash; separate its parts with '/'"
    if key.startswith("/"):
        return "it begins with '/'; keys are relative to their bucket"
    if key.startswith("."):
        return "it begins with a dot"
    if len(key.encode()) > MAX_KEY_BYTES:
        return f"it has {len(key.encode())} bytes, at most {MAX_KEY_BYTES} are allowed"
    for segment in key.split("/"):
        if not segment:
            return "it has an empty part ('//' or a trailing '/')"
        if segment in (".", ".."):
            return f"it has the part {segment!r}"
        if len(segment.encode()) > MAX_SEGMENT_BYTES:
            return f"a part of it has {len(segment.encode())} bytes, at most {MAX_SEGMENT_BYTES} are allowed"
    if not unicodedata.is_normalized("NFC", key):
        return "it is not in Unicode normal form C (NFC); normalise it before sending"
    return None


def _is_forbidden(character: str) -> bool:
    code = ord(character)
    noncharacter = (
        code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    )  # XML, which S3 speaks, can't carry them
    return (
        noncharacter or character in _REORDERING or unicodedata.category(character) in _FORBIDDEN_CATEGORIES
    )


def _safe_name(filename: str) -> str:
    name = unicodedata.normalize("NFC", filename.replace("\\", "/").rsplit("/", 1)[-1])
    name = "".join("_" if _is_forbidden(character) else character for character in name)
    name = unicodedata.normalize("NFC", name).strip().lstrip(".").strip()
    if not name:
        return "video"
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension.encode()) > 16:
        stem, dot, extension = name, "", ""
    room_bytes = MAX_SEGMENT_BYTES - len((dot + extension).encode())
    # Cutting bytes may split a character, hence "ignore"; it can't undo the normal form of what is left.
    return stem.encode()[:room_bytes].decode(errors="ignore") + dot + extension


def _id(value: str) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise InvalidKey(f"id {_shown(value)} is not acceptable: use 1 to 64 of A-Z a-z 0-9 _ -")
    return value


def _shown(value: object) -> str:
    text = ascii(value) if not isinstance(value, str) or not value.isprintable() else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...'"
