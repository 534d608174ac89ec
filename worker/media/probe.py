"""Checks a file before it is decoded: container, streams, limits.

Every file is untrusted. FFmpeg may open this one local file and nothing else: protocols are limited to ``file`` and
formats to real containers, so a playlist (HLS, DASH, concat) is refused by its format before it can name a file, and
QuickTime data references to other files stay off. Codecs are named too (``codecs``): opening a file decodes some of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import av
from av.audio.stream import AudioStream as AvAudioStream
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream as AvVideoStream

from shared.errors import BadMedia, LimitExceeded

from .codecs import AUDIO, VIDEO, decoders
from .layout import boxes, read_flavour, read_index
from .limits import MIN_SIDE_PX, MediaLimits
from .memory import choose_threads
from .results import AudioStream, MediaInfo, VideoStream

S = TypeVar("S", AvVideoStream, AvAudioStream)

#: Demuxers FFmpeg may choose. The three audio ones are there for a better error: "has no video stream".
CONTAINERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "mxf", "wav", "mp3", "flac")

#: First bytes of text formats that name other files, refused with their own message.
_PLAYLISTS = {b"#EXTM3U": "an HLS playlist", b"ffconcat": "a concat list", b"<MPD": "a DASH manifest"}


@contextmanager
def open_media(path: Path, limits: MediaLimits) -> Iterator[InputContainer]:
    """Open one local file with FFmpeg, allowed to read that file and no other.

    Raises BadMedia when it is empty, a playlist, or no container we accept; LimitExceeded when it is too large.
    """
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise BadMedia("The file is empty (0 bytes); upload it again")
    if size_bytes > limits.max_video_bytes:
        raise LimitExceeded(
            f"The file has {size_bytes} bytes, the limit is {limits.max_video_bytes}; upload a smaller one or cut it up"
        )
    try:
        container = av.open(
            f"file:{path.resolve()}",
            mode="r",
            metadata_errors="replace",
            options={
                "protocol_whitelist": "file",
                "format_whitelist": ",".join(CONTAINERS),
                "codec_whitelist": ",".join(decoders()),
                "max_pixels": str(max_pixels(limits)),
                "enable_drefs": "0",
                "max_streams": str(4 * limits.max_video_streams),
            },
        )
    except MemoryError as error:
        raise LimitExceeded(
            f"The file declares more than {4 * limits.max_video_streams} streams or needs more memory than there is, "
            f"the limit is {limits.max_video_streams} streams; keep one video and one audio stream"
        ) from error
    except (av.FFmpegError, ValueError, OverflowError) as error:
        raise BadMedia(_why_not_opened(path, size_bytes)) from error
    with closing(container):
        yield container


def max_pixels(limits: MediaLimits) -> int:
    """Return the largest picture a decoder may allocate, in pixels, codec padding included."""
    return (limits.max_video_side_px + 64) ** 2


def describe(container: InputContainer, path: Path, limits: MediaLimits) -> MediaInfo:
    """Choose the streams and check the header against the limits.

    Raises BadMedia (not a usable video) or LimitExceeded, each with one sentence that names the value.
    """
    streams = container.streams
    if len(streams) > limits.max_video_streams:
        raise LimitExceeded(
            f"The file has {len(streams)} streams, the limit is {limits.max_video_streams}; keep one video and one audio"
        )
    video = _choose_video(container)
    width, height = video.codec_context.width, video.codec_context.height
    check_size(width, height, limits)
    avg_fps = float(video.average_rate or 0)
    if avg_fps > limits.max_video_fps:
        raise LimitExceeded(
            f"The header gives {avg_fps:.6g} frames a second, the limit is {limits.max_video_fps:g}; "
            "re-encode it at a usual frame rate"
        )
    duration_s = max(0.0, (container.duration or 0) / 1e6, *(_stream_duration_s(s) for s in streams))
    if container.format.name == "avi" and avg_fps > 0:
        # FFmpeg shortens the duration of a truncated AVI to what is there; the header's frame count stays.
        duration_s = max(duration_s, video.frames / avg_fps)
    heard = choose_audio(container)
    audio = None
    if heard is not None:
        check_rate(heard.codec_context.sample_rate, limits)
        # Where the header gives the length of both.
        if (pictures_s := _stream_duration_s(video)) > 0:
            check_sound(_stream_duration_s(heard), pictures_s, limits)
        audio = AudioStream(
            index=heard.index,
            codec=heard.codec_context.name,
            sample_rate_hz=heard.codec_context.sample_rate,
            channels=heard.codec_context.channels,
            language=None if heard.language in (None, "und") else heard.language,
        )
    if duration_s > limits.max_video_duration_s:
        raise LimitExceeded(
            f"The header gives a duration of {duration_s:.0f} s, the limit is {limits.max_video_duration_s:.0f} s; "
            "cut it into shorter files or repair the header"
        )
    flavour = read_flavour(path, container.format.name)
    return MediaInfo(
        container=container.format.name,
        flavour=flavour,
        index=read_index(path) if flavour in ("mp4", "mov") else None,
        duration_s=duration_s,
        size_bytes=path.stat().st_size,
        video=VideoStream(
            index=video.index,
            codec=video.codec_context.name,
            width=width,
            height=height,
            rotation_deg=0,
            avg_fps=avg_fps,
            pix_fmt=video.codec_context.pix_fmt or "unknown",
        ),
        audio=audio,
        streams=len(streams),
    )


def check_size(width: int, height: int, limits: MediaLimits) -> None:
    """Refuse pictures outside the allowed sides; both in pixels."""
    if min(width, height) < MIN_SIDE_PX:
        raise BadMedia(
            f"The picture is {width}x{height} pixels, the smallest usable side is {MIN_SIDE_PX}; "
            "upload a video with a visible picture"
        )
    if max(width, height) > limits.max_video_side_px:
        raise LimitExceeded(
            f"The picture is {width}x{height} pixels, the limit is {limits.max_video_side_px} a side; scale it down"
        )


def check_rate(rate_hz: int, limits: MediaLimits) -> None:
    """Refuse sound with fewer samples a second than the least: each would become thousands at 16 kHz."""
    if rate_hz < limits.min_audio_rate_hz:
        raise LimitExceeded(
            f"The sound has {rate_hz} samples a second, the least is {limits.min_audio_rate_hz} (MIN_AUDIO_RATE_HZ); "
            "convert it to a usual rate"
        )


def check_sound(sound_s: float, pictures_s: float, limits: MediaLimits) -> None:
    """Refuse sound that goes on long after the last picture; both in seconds from the container's start."""
    if sound_s > pictures_s + limits.max_sound_after_pictures_s:
        raise LimitExceeded(
            f"The sound goes on to {sound_s:.0f} s, the pictures end at {pictures_s:.0f} s, the limit is "
            f"{limits.max_sound_after_pictures_s:g} s more (MAX_SOUND_AFTER_PICTURES_S); cut the sound off"
        )


def _stream_duration_s(stream: Stream) -> float:
    """Return the seconds the header gives this stream, 0.0 when it gives none."""
    if stream.duration is None or stream.time_base is None:
        return 0.0
    return max(0.0, float(stream.duration * stream.time_base))


def configure_decoder(stream: AvVideoStream, limits: MediaLimits, *, fast: bool) -> None:
    """Set the decoder's options; must run before its first packet.

    ``fast`` drops pictures nothing else refers to and skips the loop filter.
    Raises LimitExceeded when not even one thread fits in the memory allowed.
    """
    context = stream.codec_context
    threads = choose_threads(stream, limits)
    context.thread_type = "FRAME" if threads > 1 else "NONE"
    context.thread_count = threads
    options = {"max_pixels": str(max_pixels(limits))}
    if fast:
        context.skip_frame = "NONREF"
        options["skip_loop_filter"] = "all"
    context.options = options


def _choose_video(container: InputContainer) -> AvVideoStream:
    """Pick the default, else the largest video stream with a decoder; cover pictures don't count."""
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        raise BadMedia("The file has no video stream; upload a file with moving pictures")
    known = [s for s in moving if s.codec_context is not None]
    if not known:
        raise BadMedia("The video stream uses an unknown codec; convert it to H.264 in MP4")
    accepted = _accepted(known, VIDEO, "video stream", "H.264 in MP4")
    return max(
        accepted, key=lambda s: (_is_default(s), s.codec_context.width * s.codec_context.height, -s.index)
    )


def choose_audio(container: InputContainer) -> AvAudioStream | None:
    """Pick the default, else the first audio stream with a decoder and a sample rate.

    Raises BadMedia when there is sound, but only of codecs that are not accepted.
    """
    streams = container.streams.audio
    known = [s for s in streams if s.codec_context is not None and s.codec_context.sample_rate > 0]
    if not known:
        return None
    return max(_accepted(known, AUDIO, "sound", "AAC"), key=lambda s: (_is_default(s), -s.index))


def _accepted(streams: list[S], codecs: frozenset[str], what: str, remedy: str) -> list[S]:
    """Return the streams of these codecs; raises BadMedia when there is none."""
    found = [s for s in streams if s.codec_context.codec.canonical_name in codecs]
    if not found:
        name = streams[0].codec_context.codec.canonical_name
        raise BadMedia(f"The {what} uses the codec {name}, which is not accepted; convert it to {remedy}")
    return found


def _is_default(stream: Stream) -> bool:
    return bool(stream.disposition & Disposition.default)


def _why_not_opened(path: Path, size_bytes: int) -> str:
    """Return the sentence for a file FFmpeg would not open, from its first bytes."""
    with path.open("rb") as file:
        head = file.read(4096)
        text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
        for mark, name in _PLAYLISTS.items():
            if text.startswith(mark) or (mark == b"<MPD" and mark in head):
                return f"The file is {name}, which only names other files; upload the video itself"
        if head[4:8] == b"ftyp" and b"moov" not in boxes(file, size_bytes):
            return (
                "The file is an MP4 without its index (no moov box in "
                f"{size_bytes} bytes): it is truncated or was never finished; upload it again"
            )
    return (
        f"The file ({size_bytes} bytes) is damaged or in no video format we accept "
        f"({', '.join(CONTAINERS[:9])}); convert it to H.264 in MP4"
    )
