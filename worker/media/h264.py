"""How many reference frames an H.264 stream asks for, from its sequence parameter sets (ITU-T H.264, 7.3.2.1.1).

FFmpeg knows the number but PyAV does not show it, and it decides how much memory the decoder takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

_SPS = 7
#: Profiles whose parameter set states the chroma format.
_HIGH_PROFILES = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
_MOST_REFERENCES = 16


def reference_frames(extradata: bytes | None) -> int | None:
    """Return the most reference frames (0..16) that any parameter set names; None when there is none to read.

    ``extradata`` is an AVCDecoderConfigurationRecord (ISO/IEC 14496-15) or an Annex B byte stream.
    """
    found = []
    for unit in _units(extradata or b""):
        if unit and unit[0] & 0x1F == _SPS:
            with suppress(IndexError):  # cut off: FFmpeg refuses it too
                found.append(_read(unit[1:].replace(b"\0\0\3", b"\0\0")))
    return min(_MOST_REFERENCES, max(found)) if found else None


def _units(data: bytes) -> Iterator[bytes]:
    if data[:1] == b"\1":
        at = 6
        for _ in range(data[5] & 0x1F if len(data) > 5 else 0):
            size = int.from_bytes(data[at : at + 2], "big")
            yield data[at + 2 : at + 2 + size]
            at += 2 + size
    else:
        yield from data.split(b"\0\0\1")


def _read(data: bytes) -> int:
    bits = _Bits(data)
    profile = bits.take(8)
    bits.take(16)  # constraints, level
    bits.golomb()  # number of the set
    if profile in _HIGH_PROFILES:
        chroma = bits.golomb()
        if chroma == 3:
            bits.take(1)
        bits.golomb()  # depth of luma
        bits.golomb()  # depth of chroma
        bits.take(1)
        if bits.take(1):
            for index in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    bits.skip_scaling_list(16 if index < 6 else 64)
    bits.golomb()  # length of frame numbers
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1)
        bits.golomb()
        bits.golomb()
        for _ in range(min(255, bits.golomb())):
            bits.golomb()
    return bits.golomb()


class _Bits:
    """Reads a byte string bit by bit; IndexError at its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self._data[self._at >> 3] >> (7 - (self._at & 7)) & 1
            self._at += 1
        return value

    def golomb(self) -> int:
        """An Exp-Golomb code (clause 9.1), unsigned; a signed one has the same length."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def skip_scaling_list(self, size: int) -> None:
        last = following = 8
        for _ in range(size):
            if following:
                code = self.golomb()
                following = (last + ((code + 1) // 2 if code % 2 else -(code // 2))) % 256
            last = following or last
