"""What the headers of tus and of ranges mean."""

from __future__ import annotations

import base64

import pytest

from api.files import Span, attachment, content_type, picture_type, read_ranges
from api.problems import BadRequest, ChecksumMismatch, RangeNotSatisfiable
from api.tus import read_checksum, read_length, read_metadata, read_offset
from shared.errors import InvalidKey, InvalidRequest, LimitExceeded


def encoded(**fields: str) -> str:
    return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in fields.items())


def test_metadata_names_the_video() -> None:
    found = read_metadata(encoded(filename="Ünï code.MP4", video_id="v1", priority="9", type="x"), "u1")
    assert (found.video_id, found.storage_key, found.priority) == ("v1", "uploads/u1/v1/Ünï code.MP4", 9)
    bare = read_metadata("", "u1")
    assert bare.storage_key == f"uploads/u1/{bare.video_id}/video" and len(bare.video_id) == 32
    assert read_metadata("is_confidential," + encoded(filename="a/../..\\b.mp4"), "u1").storage_key.endswith(
        "/b.mp4"
    )


@pytest.mark.parametrize(
    "header",
    [
        *("filename YQ", "filename YQ==,filename Yg==", "filename  YQ==", "é YQ==", "a b c", "x" * 4097),
        *(
            encoded(video_id="../u2/v"),
            encoded(video_id="v 1"),
            encoded(priority="10"),
            encoded(priority="1e1"),
        ),
        *(encoded(priority="٣٤"), "filename /w==", encoded(filename="x" * 9000)),
    ],
)
def test_hostile_metadata_is_refused_in_a_sentence(header: str) -> None:
    with pytest.raises((InvalidRequest, InvalidKey)) as caught:
        read_metadata(header, "u1")
    assert len(str(caught.value)) < 400


def test_lengths_and_offsets_are_plain_numbers() -> None:
    assert read_offset("0") == 0 and read_length("5", 5) == 5
    for header in ("", "-1", "+1", "1.0", "1e3", " 1", "0x1", "٣", "9" * 19):
        with pytest.raises(BadRequest):
            read_offset(header)
    with pytest.raises(LimitExceeded, match="6 bytes, at most 5"):
        read_length("6", 5)
    with pytest.raises(InvalidRequest):
        read_length("0", 5)


def test_a_checksum_is_checked() -> None:
    found = read_checksum("sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=")
    assert found is not None
    found.check(b"hello")
    with pytest.raises(ChecksumMismatch):
        found.check(b"hellO")
    assert read_checksum("") is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-9", [(0, 10)]),
        ("bytes=90-", [(90, 100)]),
        ("bytes=-10", [(90, 100)]),
        ("bytes=-1000", [(0, 100)]),
        ("bytes=95-1000", [(95, 100)]),
        ("BYTES = 0-0", [(0, 1)]),
        ("bytes=0-1, 5-6 ,,-1", [(0, 2), (5, 7), (99, 100)]),
        ("bytes=0-1,200-", [(0, 2)]),
        ("bytes=0-50,40-", []),  # overlapping: the whole file
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(0, 40, 2)), []),  # too many
        ("items=0-1", []),
        ("bytes 0-1", []),
    ],
)
def test_ranges(header: str, expected: list[tuple[int, int]]) -> None:
    assert read_ranges(header, 100) == [Span(*pair) for pair in expected]


@pytest.mark.parametrize(
    "header",
    ["bytes=100-", "bytes=-0", "bytes=5-4", "bytes=", "bytes=a-b", "bytes=-", "bytes=1-2-3", "bytes=--1"],
)
def test_ranges_that_name_nothing(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        read_ranges(header, 100)
    with pytest.raises(RangeNotSatisfiable):
        read_ranges("bytes=0-", 0)


def test_no_name_makes_a_page_or_a_header() -> None:
    for name in ("a.html", "a.svg", "a.xhtml", "a", "mp4", "a.mp4.htm", ".mp4/", "a.js"):
        assert content_type(name) in ("application/octet-stream",) or name == "mp4"
    assert content_type("A.MP4") == "video/mp4"
    hostile = attachment(
        'a"\r\nSet-Cookie: x=1;\u202e\ud83d\ude00.mp4'.encode("utf-16", "surrogatepass").decode("utf-16")
    )
    assert "\r" not in hostile and "\n" not in hostile and hostile.isascii() and hostile.count('"') == 2
    assert picture_type(b"<svg xmlns=") is picture_type(b"") is picture_type(b"GIF89a") is None
    assert picture_type(b"RIFF\0\0\0\0WEBPVP8 ") == "image/webp"
