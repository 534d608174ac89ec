"""What a browser plays, by the probe alone: nothing is decoded here."""

from __future__ import annotations

from typing import Any

import pytest

from shared.playback import playable

MP4, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"


def probe(
    container: str,
    codec: str,
    sound: str | None,
    *,
    flavour: str = "",
    index: str | None = None,
    pix_fmt: str = "yuv420p",
) -> dict[str, Any]:
    return {
        "container": container, "flavour": flavour, "index": index,
        "video": {"codec": codec, "pix_fmt": pix_fmt}, "audio": None if sound is None else {"codec": sound},
    }  # fmt: skip


@pytest.mark.parametrize(
    "media",
    [
        probe(MP4, "h264", "aac", flavour="mp4", index="start"),
        probe(MP4, "h264", None, flavour="mp4", index="start", pix_fmt="yuvj420p"),
        probe(MP4, "libdav1d", "libopus", flavour="mp4", index="start"),
        probe(MP4, "vp9", "flac", flavour="mp4", index="start"),
        probe(MP4, "h264", "mp3float", flavour="mp4"),
        probe(MATROSKA, "vp9", "opus", flavour="webm"),
        probe(MATROSKA, "vp8", "vorbis", flavour="webm"),
        # Probes of earlier versions say neither the flavour nor the index.
        probe(MP4, "h264", "aac"),
        probe(MATROSKA, "vp9", "opus"),
    ],
)
def test_plays_as_it_is(media: dict[str, Any]) -> None:
    needs = playable(media)
    assert (needs.how, needs.reason, needs.plays) == ("original", "", True)


@pytest.mark.parametrize(
    ("media", "reason", "plays"),
    [
        (probe(MP4, "h264", "aac", flavour="mp4", index="end"), "its index (moov) is at the end", True),
        (probe(MP4, "h264", "aac", flavour="mp4", index="fragments"), "its index (moov) is in fragments", True),
        (probe(MP4, "h264", "aac", flavour="mov", index="start"), "browsers don't play h264 in mov", False),
        (probe(MATROSKA, "h264", "aac", flavour="matroska"), "browsers don't play h264 in matroska", False),
        (probe("mpegts", "h264", "aac"), "browsers don't play h264 in mpegts", False),
        (probe(MATROSKA, "vp9", "opus", flavour="matroska"), "browsers don't play vp9 in matroska", False),
    ],
)  # fmt: skip
def test_needs_another_container(media: dict[str, Any], reason: str, plays: bool) -> None:
    needs = playable(media)
    assert (needs.how, needs.reason, needs.plays) == ("remux", reason, plays)
    assert needs.copies_video and needs.copies_audio


@pytest.mark.parametrize(
    ("media", "reason", "copies"),
    [
        (probe(MP4, "hevc", "aac", flavour="mp4", index="start"), "browsers don't play hevc", (False, True)),
        (probe("avi", "mpeg4", "mp3float"), "browsers don't play mpeg4", (False, True)),
        (probe(MP4, "prores", "pcm_s16le", flavour="mov"), "browsers don't play prores", (False, False)),
        (probe("ogg", "theora", "vorbis"), "browsers don't play theora", (False, False)),
        (probe(MP4, "h264", "aac", flavour="mp4", pix_fmt="yuv420p10le"),
         "browsers don't play h264 with pixel format yuv420p10le", (False, True)),
        (probe(MP4, "h264", "aac", flavour="mp4", pix_fmt="yuv422p"),
         "browsers don't play h264 with pixel format yuv422p", (False, True)),
        (probe(MP4, "h264", "ac3", flavour="mp4"), "browsers don't play ac3 sound", (True, False)),
        (probe(MATROSKA, "h264", "vorbis", flavour="webm"), "browsers don't play h264 with vorbis sound in webm", (True, False)),
        (probe(MATROSKA, "vp8", "aac", flavour="matroska"), "browsers don't play vp8 with aac sound in matroska", (False, True)),
    ],
)  # fmt: skip
def test_needs_other_codecs(media: dict[str, Any], reason: str, copies: tuple[bool, bool]) -> None:
    needs = playable(media)
    assert (needs.how, needs.reason, needs.plays) == ("transcode", reason, False)
    assert (needs.copies_video, needs.copies_audio) == copies
