"""Pictures from anywhere: the formats, the turns, and what is refused before it is decoded."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from shared.errors import BadMedia, LimitExceeded
from tests.support.pictures import encoded, png_claiming
from worker.media.pictures import MAX_SIDE_PX, bound_picture, count_pixels, decode_picture

MANY = 10**7


def scenery(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    """uint8 [height, width, 3], different in every corner and smooth enough for JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)


def webp_claiming(width: int, height: int) -> bytes:
    """A WebP container whose header states a size."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_claiming(width: int, height: int) -> bytes:
    data = encoded(Image.fromarray(scenery()), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_shows_every_format_upright(kind: str, orientation: int) -> None:
    remarks = Image.Exif()
    remarks[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(scenery()), kind, exif=remarks, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    picture = decode_picture(data, max_pixels=MANY)
    assert picture.dtype == np.uint8 and picture.flags.c_contiguous
    np.testing.assert_array_equal(picture, np.asarray(expected))


def test_damaged_remarks_do_not_hide_the_picture() -> None:
    data = encoded(Image.fromarray(scenery()), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xee" * 40)
    assert decode_picture(data, max_pixels=MANY).shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("kind", "modes"), [("JPEG", "1 L CMYK RGB"), ("PNG", "1 L P RGB"), ("WEBP", "1 L P CMYK RGB")]
)
def test_every_mode_of_colour_becomes_rgb(kind: str, modes: str) -> None:
    for mode in modes.split():
        image = Image.fromarray(scenery()).convert(mode)
        picture = decode_picture(encoded(image, kind), max_pixels=MANY)
        assert picture.shape == (40, 60, 3)
        close = np.abs(picture.astype(int) - np.asarray(image.convert("RGB")).astype(int)).mean()
        assert close < 16, f"{mode}: lossy formats keep it alike; an inverted CMYK would be off by 100"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_lies_on_white(kind: str) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    picture = decode_picture(encoded(image, kind, lossless=True), max_pixels=MANY)
    assert picture[0, 0].tolist() == [0, 0, 255] and picture[0, 7].tolist() == [255, 255, 255]


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    grey = (np.arange(4096, dtype=np.uint16) * 16).reshape(64, 64)
    picture = decode_picture(encoded(Image.fromarray(grey), "PNG"), max_pixels=MANY)
    np.testing.assert_array_equal(picture[:, :, 1], grey >> 8)


def test_an_animation_shows_its_first_picture() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for kind in ("PNG", "WEBP"):
        data = encoded(first, kind, save_all=True, append_images=[second], lossless=True)
        assert decode_picture(data, max_pixels=MANY)[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png_claiming(60_000, 60_000), "60000x60000 = 3600000000"),
        (png_claiming(12_000, 9_000), "12000x9000 = 108000000"),
        (webp_claiming(16_383, 16_383), "16383x16383 = 268402689"),
        (jpeg_claiming(12_000, 9_000), "12000x9000 = 108000000"),
        (jpeg_claiming(65_535, 65_535), "65535x65535 = 4294836225"),
    ],
    ids=["png-bomb", "png-100-megapixels", "webp", "jpeg-100-megapixels", "jpeg-bomb"],
)
def test_a_picture_over_the_limit_is_refused_by_its_header(data: bytes, size: str) -> None:
    tracemalloc.start()
    with pytest.raises(LimitExceeded, match=f"{size} pixels, over the limit of 50000000; send a smaller one"):
        decode_picture(data, max_pixels=50_000_000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2**20


@pytest.mark.parametrize(
    ("kind", "lossless"), [("WEBP", True), ("WEBP", False), ("PNG", False), ("JPEG", False)]
)
def test_a_picture_of_just_so_many_pixels(kind: str, lossless: bool) -> None:
    """WebP states its size in one way or the other (VP8L, VP8)."""
    data = encoded(Image.fromarray(scenery()), kind, lossless=lossless)
    with pytest.raises(LimitExceeded, match="60x40 = 2400 pixels"):
        decode_picture(data, max_pixels=2399)
    assert decode_picture(data, max_pixels=2400).shape == (40, 60, 3)
    assert count_pixels(data, max_pixels=2400) == 2400


def test_a_jpeg_of_countless_scans_is_refused() -> None:
    data = encoded(Image.fromarray(scenery(400, 400)), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    scan = data[at:-2]
    with pytest.raises(LimitExceeded, match="scans, over the limit of 50 "):
        decode_picture(data[:-2] + scan * 2000 + data[-2:], max_pixels=MANY)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_cut_off_at_any_place_is_refused_in_one_sentence(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for end in (0, 1, 3, 8, 12, 20, 29, 30, 33, 60, len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(BadMedia) as refusal:
            decode_picture(data[:end], max_pixels=MANY)
        assert "\n" not in str(refusal.value) and str(refusal.value).startswith("The picture ")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damage_anywhere_is_refused_or_survived(kind: str) -> None:
    chance = np.random.default_rng(7)
    whole = encoded(Image.fromarray(scenery()), kind)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for place in chance.integers(12, len(data), 8):
            data[place] = chance.integers(0, 256)
        try:
            picture = decode_picture(bytes(data), max_pixels=MANY)
        except BadMedia:
            refused += 1
        else:
            assert picture.ndim == 3 and picture.dtype == np.uint8
    assert refused


@pytest.mark.parametrize(
    "data",
    [b"GIF89a" + bytes(50), b"BM" + bytes(50), b"%PDF-1.7", b"<svg/>", b"II*\0" + bytes(50), bytes(40), b"RIFF1234WAVEfmt "],
    ids=["gif", "bmp", "pdf", "svg", "tiff", "zeros", "wav"],
)  # fmt: skip
def test_other_formats_are_refused(data: bytes) -> None:
    with pytest.raises(BadMedia, match=r"no JPEG, PNG or WebP .*convert it"):
        decode_picture(data, max_pixels=MANY)


def test_a_picture_is_bounded_as_keyframes_are() -> None:
    small = scenery(700, MAX_SIDE_PX)
    assert bound_picture(small) is small
    large = scenery(500, 2 * MAX_SIDE_PX)
    bounded = bound_picture(large)
    assert bounded.shape == (250, MAX_SIDE_PX, 3) and bounded.dtype == np.uint8
    np.testing.assert_allclose(bounded.mean(axis=(0, 1)), large.mean(axis=(0, 1)), atol=1)
    assert bound_picture(scenery(MAX_SIDE_PX * 3, 1)).shape == (MAX_SIDE_PX, 1, 3)
