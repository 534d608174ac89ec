"""Storage keys: what is accepted can't leave its bucket, what is refused is refused with a reason."""

from __future__ import annotations

import os
import posixpath
import string
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, strategies as st

from shared.errors import InvalidKey
from shared.storage import (
    StorageConfig,
    attempt_prefix,
    check_key,
    check_prefix,
    open_storage,
    require_prefix,
    sidecar_key,
    upload_key,
)

# Alphabets that make up the attacks: separators, dots, percent signs, controls, look-alikes, combining marks.
HOSTILE = st.text(
    st.sampled_from("./\\%~ \0\n\r\u2028\u202e\u0301\u0338\u2044\uff0e\uff0faeA0:*|<>&?#+\ud800\uffff")
)
PARTS = st.sampled_from(["..", ".", "", "a", "%2e%2e", " .. ", "..."]) | st.text(max_size=8)
KEYS = st.text(max_size=60) | HOSTILE | st.lists(PARTS).map("/".join)
IDS = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=64)


def accepted(key: str) -> bool:
    try:
        return check_key(key) == key
    except InvalidKey:
        return False


# Hypothesis itself fails a test whose filter lets next to nothing through, so these can't become empty words.
ACCEPTED = KEYS.filter(accepted)


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "uploads/u1/v1/Mein Urlaub (1).mp4",
        "uploads/u1/v1/видео.mp4",
        "uploads/u1/v1/ビデオ.mp4",
        "uploads/u1/v1/" + "\N{FAMILY}\N{ZERO WIDTH JOINER}\N{HEAVY BLACK HEART}.mp4",
        "uploads/u1/v1/...mp4",
        "uploads/u1/v1/.hidden",
        "uploads/u1/v1/a..b",
        "uploads/u1/v1/%2e%2e",
        "uploads/u1/v1/ ",
        "a/" * 155 + "b" * 200,
        "é" * 100,
    ],
)
def test_ordinary_keys_are_accepted_unchanged(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "empty"),
        ("\u3000 ", "blank"),
        ("..", "dot"),
        (".", "dot"),
        (".partial/x", "dot"),
        ("a/../b", "'..'"),
        ("a/..", "'..'"),
        ("a/./b", "'.'"),
        ("/etc/passwd", "begins with '/'"),
        ("//a", "begins with '/'"),
        ("a//b", "empty part"),
        ("a/", "empty part"),
        ("a\\..\\b", "backslash"),
        ("C:\\x", "backslash"),
        ("a\0b", "U+0000"),
        ("a\nb", "U+000A"),
        ("a\x7fb", "U+007F"),
        ("a\x85b", "U+0085"),
        ("a\u2028b", "U+2028"),
        ("a\u202egp4.mp4", "U+202E"),
        ("a\ud800b", "U+D800"),
        ("a\uffffb", "U+FFFF"),
        ("a" * 201, "201 bytes"),
        ("é" * 101, "202 bytes"),
        ("/".join("a" * 100 for _ in range(6)), "605 bytes"),
        ("uploads/e\u0301.mp4", "NFC"),
        *((key, "must be a string") for key in (None, 7, b"a", ["a"])),
    ],
)
def test_bad_keys_are_refused_with_the_reason(key: Any, reason: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        check_key(key)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable() and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@given(key=ACCEPTED)
def test_an_accepted_key_is_a_file_in_its_bucket(key: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    bucket = "/root/bucket"
    # Nothing to resolve: the key is its own normal form.
    assert os.path.normpath(f"{bucket}/{key}") == posixpath.join(bucket, key) == f"{bucket}/{key}"
    assert str(Path(bucket) / key) == f"{bucket}/{key}"
    assert unquote(quote(key)) == key == unicodedata.normalize("NFC", key)
    assert len(key.encode()) <= 512 and all(len(part.encode()) <= 200 for part in key.split("/"))
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in key)
    assert "\\" not in key and key[0] not in "/."
    root = tmp_path_factory.mktemp("root")
    storage = open_storage(StorageConfig(root=root))
    storage.ensure_buckets()
    storage.put_bytes("tmp", key, b"here", "text/plain")
    files = [path for path in root.rglob("*") if path.is_file()]
    assert [path.relative_to(root / "tmp").as_posix() for path in files] == [key]
    assert [info.key for info in storage.list("tmp", "")] == [key]
    assert storage.get_bytes("tmp", key) == b"here"


@given(user_id=IDS, video_id=IDS, filename=st.one_of(st.text(max_size=300), HOSTILE))
@example(user_id="u", video_id="v", filename="e" + "\u0301" * 300)
@example(user_id="u" * 64, video_id="v" * 64, filename="\U0001f600" * 300 + ".mp4")
def test_any_file_name_becomes_a_key_of_its_video(user_id: str, video_id: str, filename: str) -> None:
    key = upload_key(user_id, video_id, filename)
    assert require_prefix(key, f"uploads/{user_id}/{video_id}/") == key
    assert key.count("/") == 3


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("clip.mp4", "clip.mp4"),
        ("/home/me/clip.mp4", "clip.mp4"),
        ("C:\\videos\\clip.mp4", "clip.mp4"),
        ("../../etc/passwd", "passwd"),
        ("..", "video"),
        ("", "video"),
        (".mp4", "mp4"),
        ("  a b.mp4 ", "a b.mp4"),
        ("a\nb.mp4", "a_b.mp4"),
        ("cafe\u0301.mp4", "caf\u00e9.mp4"),
        ("x" * 300 + ".mp4", "x" * 196 + ".mp4"),
        ("日" * 100 + ".webm", "日" * 65 + ".webm"),
    ],
)
def test_the_name_kept_for_an_upload(filename: str, name: str) -> None:
    assert upload_key("u1", "v1", filename) == f"uploads/u1/v1/{name}"


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a b", "é", "x" * 65, "a\n", None])
def test_ids_that_could_change_a_path_are_refused(bad: str) -> None:
    for build in (
        lambda: upload_key(bad, "v", "n"),
        lambda: upload_key("u", bad, "n"),
        lambda: sidecar_key("u", "v", bad, 1),
        lambda: attempt_prefix("tmp", "u", "v", bad, 1),
    ):
        with pytest.raises(InvalidKey, match="id"):
            build()


def test_the_layout_of_keys() -> None:
    assert sidecar_key("u", "v", "s", 3) == "sidecars/u/v/s.r3.json"
    assert attempt_prefix("tmp", "u", "v", "j", 2) == "tmp/u/v/j.2/"
    with pytest.raises(InvalidKey, match="negative"):
        sidecar_key("u", "v", "s", -1)
    with pytest.raises(InvalidKey, match="negative"):
        attempt_prefix("tmp", "u", "v", "j", -1)


def test_prefixes() -> None:
    for prefix in ("", "a", "a/", "a/b", "uploads/u1/"):
        assert check_prefix(prefix) == prefix
    for wrong in ("/", "a//", "../", "a/..", "./", ".partial/", "\\", None):
        with pytest.raises(InvalidKey):
            check_prefix(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("uploads/u2/v1/a.mp4", "uploads/u1/"),
        ("uploads/u11/v1/a.mp4", "uploads/u1/"),
        ("sidecars/u1/v1/a.mp4", "uploads/u1/"),
        ("uploads/u1/../u2/a.mp4", "uploads/u1/"),
        ("uploads/u1", "uploads/u1/"),
        ("uploads/u1/a", "uploads/u1"),
    ],
)
def test_a_key_elsewhere_is_refused(key: str, prefix: str) -> None:
    with pytest.raises(InvalidKey):
        require_prefix(key, prefix)
