"""The accepted codecs: those that cameras, phones, editors and encoders of the last 25 years write.

FFmpeg has about five hundred decoders; most are for formats that are never uploaded, have had few reviewers, and contain most
of its bugs. Some also take gigabytes for one picture (EXR, 16-bit PNG). So decoders are named, and the demuxer may
use no other either when it looks for the parameters of a stream.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache

import av
from av.codec import Codec

#: By FFmpeg's canonical names.
VIDEO = frozenset({
    # Phones, cameras, web, broadcast.
    "h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "h263", "theora",
    # Editing, recording and archives.
    "prores", "dnxhd", "mjpeg", "dvvideo", "ffv1", "qtrle",
    # Windows Media, old AVI (DivX) and Flash files.
    "wmv1", "wmv2", "wmv3", "vc1", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "flv1", "vp6", "vp6f",
})  # fmt: skip

AUDIO = frozenset({
    "aac", "aac_latm", "mp3", "mp2", "mp1", "opus", "vorbis", "flac", "alac", "ac3", "eac3", "dts", "truehd",
    "amr_nb", "amr_wb", "wmav1", "wmav2", "wmapro", "wmavoice", "speex", "nellymoser",
    "adpcm_ima_wav", "adpcm_ima_qt", "adpcm_ms", "adpcm_swf", "gsm", "gsm_ms",
    "pcm_alaw", "pcm_mulaw", "pcm_bluray", "pcm_dvd", "pcm_f32be", "pcm_f32le", "pcm_f64be", "pcm_f64le", "pcm_lxf",
    "pcm_s16be", "pcm_s16be_planar", "pcm_s16le", "pcm_s16le_planar", "pcm_s24be", "pcm_s24daud", "pcm_s24le",
    "pcm_s24le_planar", "pcm_s32be", "pcm_s32le", "pcm_s32le_planar", "pcm_s8", "pcm_s8_planar", "pcm_u8", "pcm_u16be",
    "pcm_u16le", "pcm_u24be", "pcm_u24le", "pcm_u32be", "pcm_u32le",
})  # fmt: skip

#: What FFmpeg calls decoders that work by hardware or by another library than its own.
_FOREIGN = ("_cuvid", "_qsv", "_amf", "_v4l2m2m", "_mediacodec", "_rkmpp")


@cache
def decoders() -> tuple[str, ...]:
    """The names of the software decoders of these codecs, for FFmpeg's ``codec_whitelist``."""
    names = []
    for name in av.codecs_available:
        with suppress(ValueError):  # an encoder only
            if Codec(name, "r").canonical_name in VIDEO | AUDIO and not name.endswith(_FOREIGN):
                names.append(name)
    return tuple(sorted(names))
