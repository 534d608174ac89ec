"""Decides whether a browser plays a file, by what the probe of the file says.

Every current browser must play it, without a system decoder: so neither HEVC, nor more than 8 bits, nor 4:2:2. Imports
nothing of ours: the process that decodes uses it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

#: Codecs by container, video and sound. https://developer.mozilla.org/en-US/docs/Web/Media/Guides/Formats
_MP4 = (frozenset({"h264", "vp9", "av1"}), frozenset({"aac", "mp3", "opus", "flac"}))
_WEBM = (frozenset({"vp8", "vp9", "av1"}), frozenset({"opus", "vorbis"}))
#: Pixel formats: 8 bits, 4:2:0.
_PIXELS = frozenset({"yuv420p", "yuvj420p"})

#: What FFmpeg calls some decoders -> their codec.
_DECODERS = {
    "libdav1d": "av1", "libaom-av1": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9", "libopus": "opus",
    "libvorbis": "vorbis", "mp3float": "mp3", "aac_fixed": "aac",
}  # fmt: skip

#: The place of an MP4's index (moov): before the content, after it, or in fragments.
Index = Literal["start", "end", "fragments"]


@dataclass(frozen=True, kw_only=True)
class Playback:
    """What a file needs for a browser to play it."""

    #: Nothing (``original``), the same packets in another file (``remux``), or other codecs (``transcode``).
    how: Literal["original", "remux", "transcode"]
    #: Why, one clause; empty: nothing is needed.
    reason: str = ""
    #: Whether a browser plays the file as it is, if late: only its index stands in the wrong place.
    plays: bool = False
    #: Whether the stream can be copied into an MP4.
    copies_video: bool = True
    copies_audio: bool = True


def playable(media: Mapping[str, Any]) -> Playback:
    """Say what a file needs, by its probe: ``MediaInfo`` of worker/media/results.py as JSON.

    What a probe of an earlier version does not say (``flavour``, ``index``) counts as good.
    """
    video, sound = media["video"], media["audio"]
    codec = _codec(video)
    heard = None if sound is None else _codec(sound)
    pixels = video["pix_fmt"]
    eight_bit = pixels in _PIXELS
    copies_video = codec in _MP4[0] and eight_bit
    copies_audio = heard is None or heard in _MP4[1]

    flavour = media.get("flavour") or _flavour(str(media["container"]))
    videos, sounds = {"mp4": _MP4, "webm": _WEBM}.get(flavour, (frozenset(), frozenset()))
    if codec in videos and eight_bit and (heard is None or heard in sounds):
        index = media.get("index")
        if flavour == "mp4" and index == "end":
            return Playback(how="remux", reason="its index (moov) is at the end", plays=True)
        if flavour == "mp4" and index == "fragments":
            return Playback(how="remux", reason="its index (moov) is in fragments", plays=True)
        return Playback(how="original", plays=True)
    if copies_video and copies_audio:
        return Playback(how="remux", reason=f"browsers don't play {codec} in {flavour}")
    if codec not in _MP4[0] | _WEBM[0]:
        reason = f"browsers don't play {codec}"
    elif not eight_bit:
        reason = f"browsers don't play {codec} with pixel format {pixels}"
    elif heard is not None and heard not in _MP4[1] | _WEBM[1]:
        reason = f"browsers don't play {heard} sound"
    else:
        both = codec if heard is None else f"{codec} with {heard} sound"
        reason = f"browsers don't play {both} in {flavour}"
    return Playback(how="transcode", reason=reason, copies_video=copies_video, copies_audio=copies_audio)


def _codec(stream: Mapping[str, Any]) -> str:
    name = str(stream["codec"])
    return _DECODERS.get(name, name)


def _flavour(container: str) -> str:
    """The container by the names of FFmpeg's demuxer, where the probe does not tell MP4 from MOV, WebM from Matroska."""
    names = container.split(",")
    for shown in ("mp4", "webm"):
        if shown in names:
            return shown
    return names[0]
