"""Makes of a local file what every browser plays: an MP4 with its index first, in H.264 and AAC where the file's codecs are others.

What browsers play is copied packet by packet, the rest encoded. Times are those of the split: seconds from the
container's start, so that a scene's start is the player's position. Memory does not grow with the video's length, but for
the index that FFmpeg's muxer holds: about 60 bytes for each packet.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from shared.errors import BadMedia, LimitExceeded
from shared.playback import Playback, playable

from .audio import DEFAULT_TIME_BASE, is_plausible
from .boundary import media_errors
from .guard import Guard
from .limits import MediaLimits
from .packets import Progress, read_packets
from .probe import configure_decoder, describe, open_media
from .results import MediaInfo, Rendition
from .stereo import StereoTrack

RENDITION_NAME = "video.mp4"

#: The largest picture of a rendition that is encoded: the longer side, the shorter side. Both even.
_MOST_PX = 1920, 1080
#: Pictures that come sooner after the one before are left out, seconds: 60 a second are enough.
_LEAST_S = 1 / 61
_TICK_S = Fraction(1, 90_000)
#: Longest distance of pictures to which a player can jump at once, seconds.
_JUMP_S = 2.0
#: Speed before size; memory: 10 pictures ahead. The rate is limited so that noise does not fill the disk.
_H264 = {
    "preset": "veryfast", "crf": "23", "maxrate": "8M", "bufsize": "16M", "profile": "high", "rc-lookahead": "10",
}  # fmt: skip
_MOST_THREADS = 4
#: A decoder reorders 16 pictures at most.
_MOST_UNDATED = 16

#: Errors of the disk, not of the file.
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class _NotCopied(Exception):
    """The muxer refuses the file's packets."""


def make_rendition(
    path: Path,
    out_dir: Path,
    *,
    limits: MediaLimits,
    on_progress: Callable[[float], None] | None = None,
) -> Rendition:
    """Write what a browser plays instead of ``path`` into ``out_dir``; nothing if it plays the file itself.

    ``on_progress``: as for ``split``. Raises BadMedia or LimitExceeded with one sentence; OSError when ``out_dir`` can't
    be written.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    target = out_dir / RENDITION_NAME
    with media_errors(limits):
        with open_media(path, limits) as container:
            info = describe(container, path, limits)
        needs = playable(asdict(info))
        if needs.how == "original":
            return Rendition(how="original", reason="", path=None, size=None)
        encode = Playback(how="transcode", reason=needs.reason, copies_video=False, copies_audio=False)
        # A copy that the muxer refuses, or that no browser plays after all, is encoded instead.
        for plan in (needs, encode) if needs.copies_video or needs.copies_audio else (encode,):
            try:
                size = _convert(path, target, plan, limits, on_progress)
            except _NotCopied:
                continue
            if plan is encode or _is_playable(target, limits):
                return Rendition(how=plan.how, reason=plan.reason, path=target, size=size)
    raise BadMedia("The file can't be written as an MP4; convert it to H.264 in MP4")


def _is_playable(path: Path, limits: MediaLimits) -> bool:
    with open_media(path, limits) as container:
        return playable(asdict(describe(container, path, limits))).how == "original"


def _convert(
    path: Path,
    target: Path,
    plan: Playback,
    limits: MediaLimits,
    on_progress: Callable[[float], None] | None,
) -> tuple[int, int] | None:
    """Write the file by the plan; return the size of encoded pictures as shown, None if they were copied."""
    options = {"movflags": "+faststart"}
    with open_media(path, limits) as container:
        info = describe(container, path, limits)
        progress = Progress(info.duration_s, info.size_bytes, on_progress)
        with _writing(plan), av.open(str(target), "w", format="mp4", options=options) as output:
            conversion = _Conversion(container, output, info, plan, limits)
            for packet in read_packets(container, conversion.decoded, conversion.guard.count_error):
                conversion.take(packet)
                progress.tell(conversion.guard.content_s, packet.pos)
            conversion.finish()
    progress.finish()
    return conversion.shown


@contextmanager
def _writing(plan: Playback) -> Iterator[None]:
    """Raise errors of the disk as such, and what the muxer says of copied packets as ``_NotCopied``."""
    try:
        yield
    except av.FFmpegError as error:
        if error.errno in _OF_DISK:
            raise OSError(error.errno, os.strerror(error.errno)) from error
        if error.errno == errno.EFBIG:
            raise LimitExceeded("The rendition is larger than a file may be; cut the video up") from error
        if plan.copies_video or plan.copies_audio:
            raise _NotCopied from error
        raise


class _Conversion:
    """Copies or encodes the packets of one open container into another."""

    def __init__(
        self,
        container: InputContainer,
        output: OutputContainer,
        info: MediaInfo,
        plan: Playback,
        limits: MediaLimits,
    ) -> None:
        self.guard = Guard(info, limits)
        #: Streams whose decoders are to be flushed at the end.
        self.decoded: list[VideoStream | AudioStream] = []
        #: Size of encoded pictures as shown.
        self.shown: tuple[int, int] | None = None
        self._output, self._info, self._plan, self._limits = output, info, plan, limits
        self._start_s = (container.start_time or 0) / 1e6
        self._tick_s = [float(stream.time_base or DEFAULT_TIME_BASE) for stream in container.streams]
        self._video = cast(VideoStream, container.streams[info.video.index])
        self._audio = None if info.audio is None else cast(AudioStream, container.streams[info.audio.index])
        self._last_s = -1.0
        self._frame_s = 1 / info.video.avg_fps if info.video.avg_fps > 0 else 0.04
        self._encoder: VideoStream | None = None
        self._sound: StereoTrack | None = None
        self._bytes = 0
        self._copies: dict[int, Any] = {}
        #: Packets before the first one with a time of decoding: Matroska stores none, and FFmpeg computes it later.
        self._undated: list[Packet[Any]] = []
        #: What is encoded before the output knows all its streams.
        self._waiting: list[Packet[Any]] | None = []
        if plan.copies_video:
            self._copies[self._video.index] = output.add_stream_from_template(self._video, opaque=True)
        else:
            configure_decoder(self._video, limits, fast=False)
            self.decoded.append(self._video)
        if self._audio is not None:
            if plan.copies_audio:
                self._copies[self._audio.index] = output.add_stream_from_template(self._audio, opaque=True)
            else:
                self.decoded.append(self._audio)
                stream = output.add_stream("aac", rate=StereoTrack.RATE_HZ)
                self._sound = StereoTrack(stream, self._start_s, info.duration_s)

    def take(self, packet: Packet[Any]) -> None:
        """Copy or encode the packet if its stream is used."""
        index = packet.stream_index
        ticks = packet.pts if packet.pts is not None else packet.dts
        if ticks is not None and packet.size:
            ends_s = (ticks + (packet.duration or 0)) * self._tick_s[index] - self._start_s
            self.guard.content_s = max(self.guard.content_s, min(ends_s, self._limits.max_video_duration_s))
        if index in self._copies:
            self._copy(packet, index)
        elif packet.stream is self._video:
            self._encode_picture(packet)
        elif self._sound is not None and packet.stream is self._audio:
            for encoded in self._sound.encode(packet):
                self._mux(encoded)
            self.guard.check_sound(self._sound.duration_s)
        self.guard.budget.reach(self.guard.content_s)

    def finish(self) -> None:
        """Write what the encoders still hold; raises BadMedia when no picture could be decoded."""
        if self._undated:
            raise _NotCopied
        if not self._plan.copies_video:
            self.guard.check_complete()
            assert self._encoder is not None
            for encoded in self._encoder.encode(None):
                self._mux(encoded)
        if self._sound is not None:
            for encoded in self._sound.finish():
                self._mux(encoded)

    def _copy(self, packet: Packet[Any], index: int) -> None:
        if packet.pts is None:
            raise _NotCopied  # some AVI files have no times of presentation
        if packet.dts is None:
            self._undated.append(packet)
            if len(self._undated) > _MOST_UNDATED:
                raise _NotCopied
            return
        if self._undated and index == self._undated[0].stream_index:
            undated, self._undated = self._undated, []
            for back, earlier in enumerate(reversed(undated), start=1):
                earlier.dts = packet.dts - back * max(1, packet.duration or 1)
            for earlier in undated:
                self._copy(earlier, index)
        if packet.stream is self._video:
            self.guard.charge_picture(packet.size, 0, packet.pts * self._tick_s[index] - self._start_s)
        else:
            self.guard.check_sound(packet.pts * self._tick_s[index] - self._start_s)
        shift = round(self._start_s / self._tick_s[index])
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        packet.stream = self._copies[index]
        self._mux(packet)

    def _encode_picture(self, packet: Packet[Any]) -> None:
        context = self._video.codec_context
        if packet.size:
            ticks = packet.pts if packet.pts is not None else packet.dts
            ts_s = None if ticks is None else ticks * self._tick_s[self._video.index] - self._start_s
            self.guard.charge_picture(packet.size, context.width * context.height, ts_s)
        try:
            frames = context.decode(packet if packet.size else None)
        except MemoryError:
            raise
        except av.FFmpegError:
            self.guard.count_error()
            return
        for frame in frames:
            self._encode_frame(frame)

    def _encode_frame(self, frame: VideoFrame) -> None:
        ts_s = self._time_of(frame)
        self.guard.check_frame(frame.width, frame.height, ts_s)
        if self._last_s >= 0 and ts_s < self._last_s + _LEAST_S:
            return
        if self._encoder is None:
            self._encoder = self._open_encoder(frame)
        self._last_s = ts_s
        context = self._encoder.codec_context
        picture = frame.reformat(
            width=context.width,
            height=context.height,
            format="yuv420p",
            dst_colorspace="ITU709" if frame.format.is_rgb else None,
            dst_color_range="MPEG",
            threads=1,
        )
        picture.pts, picture.time_base = round(ts_s / _TICK_S), _TICK_S
        picture.pict_type = 0  # the encoder chooses its own key pictures
        for encoded in self._encoder.encode(picture):
            self._mux(encoded)

    def _open_encoder(self, frame: VideoFrame) -> VideoStream:
        """The H.264 stream for pictures like this one, the first."""
        aspect = float(self._video.sample_aspect_ratio or 1)
        width, height = _fit(frame.width * (aspect if 0.2 <= aspect <= 5.0 else 1.0), frame.height)
        rate = min(60.0, self._info.video.avg_fps or 25.0)
        jump = {"g": str(max(1, round(_JUMP_S * rate)))}
        stream = self._output.add_stream(
            "libx264", rate=Fraction(rate).limit_denominator(1001), options={**_H264, **jump}
        )
        context = stream.codec_context
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context.time_base = _TICK_S
        context.thread_count = min(_MOST_THREADS, self._limits.media_threads or os.cpu_count() or 1)
        source = self._video.codec_context
        if frame.format.is_rgb:
            context.color_primaries = context.color_trc = context.colorspace = 1  # BT.709
        else:
            # A browser maps 8 bits of HLG or PQ by these.
            context.color_primaries, context.color_trc = source.color_primaries, source.color_trc
            context.colorspace = source.colorspace
        turned = round(frame.rotation / 90) * 90 % 360
        if turned:
            stream.set_display_rotation(turned)
        self.shown = (height, width) if turned in (90, 270) else (width, height)
        return stream

    def _time_of(self, frame: VideoFrame) -> float:
        """Return when the frame is shown, as the split does."""
        ticks = frame.pts if frame.pts is not None else frame.dts
        if ticks is not None:
            ts_s = ticks * self._tick_s[self._info.video.index] - self._start_s
            if is_plausible(ts_s, self._last_s, self._info.duration_s):
                return ts_s
        return self._last_s + self._frame_s

    def _mux(self, packet: Packet[Any]) -> None:
        """Write a packet, or hold it until all streams are known; raises LimitExceeded past the bytes of a video."""
        self._bytes += packet.size
        if self._bytes > self._limits.max_video_bytes:
            raise LimitExceeded(
                f"The rendition has more than {self._limits.max_video_bytes} bytes, the limit (MAX_VIDEO_BYTES); cut the video up"
            )
        if self._waiting is not None:
            self._waiting.append(packet)
            if not self._plan.copies_video and self._encoder is None:
                return
            packets, self._waiting = self._waiting, None
            self._output.mux(packets)
        else:
            self._output.mux(packet)


def _fit(width: float, height: float) -> tuple[int, int]:
    """Return the even (width, height) that fits into the largest picture, upright or not; never enlarged."""
    scale = min(1.0, _MOST_PX[0] / max(width, height), _MOST_PX[1] / min(width, height))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)
