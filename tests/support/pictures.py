"""Photos and query pictures that must be refused, and odd ones that are fine."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from worker.models.base import Uint8


@dataclass(frozen=True)
class Sent:
    """A file as it is sent, and the class of error it must give; None: it is a picture like any other."""

    name: str
    data: bytes
    error: str | None
    #: Words of the error's sentence.
    says: str = ""


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file of an image."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header states a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def unusable() -> list[Sent]:
    """What must be refused in one sentence, by its header where it is large."""
    colours = [Image.new("RGB", (64, 64), (n % 256, n // 16, 7)) for n in range(3000)]
    plain = encoded(Image.new("RGB", (400, 300), "red"), "JPEG")
    large = "10000x10000 = 100000000 pixels, over the limit of 50000000"
    other = "is no JPEG, PNG or WebP"
    return [
        Sent("large.jpg", encoded(Image.new("L", (10_000, 10_000), 90), "JPEG"), "LimitExceeded", large),
        Sent("large.png", encoded(Image.new("1", (10_000, 10_000)), "PNG"), "LimitExceeded", large),
        Sent("bomb.png", png_claiming(60_000, 60_000), "LimitExceeded", "60000x60000 = 3600000000 pixels"),
        Sent("short.jpg", plain[: len(plain) // 2], "BadMedia", "can't be decoded"),
        Sent("film.png", encoded(colours[0], "GIF", save_all=True, append_images=colours[1:]), "BadMedia", other),
        Sent("drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "BadMedia", other),
        Sent("page.jpg", b"<!doctype html><img src='file:///etc/passwd'>", "BadMedia", other),
        Sent("list.jpg", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "BadMedia", other),
        Sent("empty.jpg", b"", "BadMedia", "it begins with nothing"),
    ]  # fmt: skip


def odd(picture: Uint8) -> list[Sent]:
    """The same picture, uint8 [H, W, 3] RGB, in the forms cameras and programs make of it."""
    image = Image.fromarray(picture)
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    lying = Image.Exif()
    lying[0x0112] = 6
    frames = [image, *(Image.new("RGB", image.size, (n % 256, n // 16, 7)) for n in range(100))]
    return [
        # 6: its top is at the right of what is stored.
        Sent("turned.jpg", encoded(image.rotate(90, expand=True), "JPEG", exif=lying, quality=95), None),
        Sent("deep.png", encoded(Image.fromarray(grey), "PNG"), None),
        Sent("print.jpg", encoded(image.convert("CMYK"), "JPEG", quality=95), None),
        Sent("moving.webp", encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], method=0), None),
    ]  # fmt: skip
