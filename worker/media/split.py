"""The one decode pass: scenes with their keyframes, and the audio, from a local file.

Memory does not grow with the video's length: keyframes are written when their scene closes, audio as it comes, and
the detectors remember a few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream as AvAudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream as AvVideoStream

from shared.errors import BadMedia, LimitExceeded

from .audio import AudioTrack
from .cuts import CutFinder
from .exact import KeyPictures
from .limits import MediaLimits
from .planes import reduce_frame, thumb_size
from .probe import MediaInfo, check_size, configure_decoder, describe, no_picture, open_media, with_rotation
from .scenes import Keyframe, SceneBuilder, SceneCut

__all__ = ["Keyframe", "SceneCut", "SplitResult", "split"]

#: Changes whenever the same file could give other scenes or keyframes than before.
ALGORITHM = "onepass-1"

Mode = Literal["exact", "fast"]

#: Containers whose header tells the true duration, so that content ending early means a truncated file.
_HEADER_TELLS = ("mov", "matroska", "avi", "flv", "asf", "mxf")
_TRUNCATED_S, _TRUNCATED_SHARE = 1.0, 0.03

_PROGRESS_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """What one pass found. Times are seconds from the container's start."""

    #: With the measured duration and rotation.
    info: MediaInfo
    #: Without gaps, from 0.0 to the end of the content.
    scenes: tuple[SceneCut, ...]
    #: WAV: mono s16le, 16 kHz, 44-byte header; None without audio.
    audio: Path | None
    #: (start, end) spans covering the audio, each at most ``part_s`` long, cut at quiet places.
    windows: tuple[tuple[float, float], ...]
    #: Algorithm and mode.
    version: str


def split(
    path: Path,
    out_dir: Path,
    *,
    limits: MediaLimits,
    mode: Mode = "exact",
    part_s: float = 120.0,
    on_progress: Callable[[float], None] | None = None,
    threads: int = 0,
) -> SplitResult:
    """Decode ``path`` once; write keyframes (JPEG) and audio (WAV) into ``out_dir`` and return the scenes.

    ``mode`` "fast" skips pictures that no other refers to and the loop filter: cuts may be off by a few frames where
    no key picture marks them. ``part_s``: longest audio window in seconds. ``on_progress`` is called with a fraction
    0..1 about twice a second and may raise; the exception passes through once the files are closed. ``threads``: 0
    means one per core.
    Raises BadMedia or LimitExceeded with one sentence; OSError when ``out_dir`` can't be written.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with open_media(path, limits) as container:
        info = describe(container, path, limits)
        return _Pass(container, info, out_dir, limits, mode, part_s, on_progress, threads).run()


class _Pass:
    """The state of one pass over one open container."""

    def __init__(
        self,
        container: InputContainer,
        info: MediaInfo,
        out_dir: Path,
        limits: MediaLimits,
        mode: Mode,
        part_s: float,
        on_progress: Callable[[float], None] | None,
        threads: int,
    ) -> None:
        self._container = container
        self._info = info
        self._limits = limits
        self._mode = mode
        self._out_dir = out_dir
        self._part_s = part_s
        self._progress = _Progress(info, on_progress)
        self._start_s = (container.start_time or 0) / 1e6
        self._video = cast(AvVideoStream, container.streams[info.video.index])
        self._audio_stream = cast(AvAudioStream, container.streams[info.audio.index]) if info.audio else None
        configure_decoder(self._video, limits, threads, fast=mode == "fast")
        self._keys = KeyPictures(self._video, limits) if mode == "fast" else None
        self._cuts = CutFinder()
        self._scenes = SceneBuilder(out_dir, limits.max_scenes, self._keys)
        self._size = thumb_size(info.video.width, info.video.height)
        self._picture_size = (0, 0)
        self._frames = 0
        self._errors = 0
        self._last_s = -1.0
        #: Seconds from one frame to the next, for frames without a time and for the end of the last.
        self._frame_s = 1 / info.video.avg_fps if info.video.avg_fps > 0 else 0.04
        #: End of everything the container holds, in any stream.
        self._content_s = 0.0

    def run(self) -> SplitResult:
        with ExitStack() as stack:
            track = None
            if self._audio_stream is not None:
                track = stack.enter_context(
                    AudioTrack(
                        self._out_dir / "audio.wav", part_s=self._part_s, max_duration_s=self._limits.max_duration_s
                    )
                )
            for packet in self._packets():
                if packet.stream_index == self._info.video.index:
                    self._decode_video(packet)
                elif track is not None and packet.stream_index == cast(AvAudioStream, self._audio_stream).index:
                    self._decode_audio(packet, track)
                self._note_end(packet)
                self._progress.tell(self._content_s, packet)
        return self._result(track)

    def _packets(self) -> Iterator[Packet]:
        """Yield the packets of all streams, then an empty one for each decoder to give up what it holds."""
        try:
            for packet in self._container.demux():
                if packet.size:
                    yield packet
        except av.FFmpegError:
            # The rest can't be read: what came so far is judged by _check_complete.
            self._errors += 1
        for stream in (self._video, self._audio_stream):
            if stream is not None:
                yield _end_of(stream)

    def _decode_video(self, packet: Packet) -> None:
        if self._keys is not None:
            self._keys.note(packet)
        try:
            frames = packet.decode() if packet.size else self._video.codec_context.decode(None)
        except (av.FFmpegError, MemoryError):
            self._errors += 1  # isolated damage is tolerated, see _check_complete
            return
        for frame in frames:
            self._take_frame(cast(VideoFrame, frame))

    def _take_frame(self, frame: VideoFrame) -> None:
        ts_s = self._time_of(frame)
        self._frames += 1
        self._check_limits(frame, ts_s)
        if ts_s <= self._last_s:
            return  # shown at no time of its own
        if self._frames == 1:
            self._info = with_rotation(self._info, frame)
        self._last_s = ts_s
        thumb = reduce_frame(frame, self._size)
        for cut in self._cuts.feed(ts_s, thumb):
            self._scenes.cut(cut)
        packet = self._keys.packet_of(frame) if self._keys is not None else None
        self._scenes.feed(ts_s, frame, thumb, packet, self._info.video.rotation_deg, self._pixel_aspect())

    def _time_of(self, frame: VideoFrame) -> float:
        """Return when the frame is shown; PyAV invents a frame number where the file gives no time, so dts serves."""
        ticks = frame.pts if frame.pts is not None else frame.dts
        if ticks is None or frame.time_base is None:
            return self._last_s + self._frame_s
        return float(ticks * frame.time_base) - self._start_s

    def _check_limits(self, frame: VideoFrame, ts_s: float) -> None:
        if (frame.width, frame.height) != self._picture_size:
            check_size(frame.width, frame.height, self._limits)
            self._picture_size = (frame.width, frame.height)
        if ts_s > self._limits.max_duration_s:
            raise LimitExceeded(
                f"A picture is shown at {ts_s:.0f} s, the limit is {self._limits.max_duration_s:.0f} s; "
                "cut the file up."
            )
        # A second's worth of slack: the rate of a few frames means little.
        if self._frames > self._limits.max_fps * (max(ts_s, self._last_s) + 1.0):
            raise LimitExceeded(
                f"There are {self._frames} pictures in {ts_s:.1f} s, over the limit of {self._limits.max_fps:g} "
                "frames a second; re-encode it at a usual frame rate."
            )

    def _pixel_aspect(self) -> float:
        ratio = self._video.sample_aspect_ratio
        aspect = float(ratio) if ratio else 1.0
        return aspect if 0.1 <= aspect <= 10 else 1.0

    def _decode_audio(self, packet: Packet, track: AudioTrack) -> None:
        stream = cast(AvAudioStream, self._audio_stream)
        try:
            frames = packet.decode() if packet.size else stream.codec_context.decode(None)
            for frame in frames:
                audio = cast(AudioFrame, frame)
                known = audio.pts is not None and audio.time_base is not None
                track.feed(audio, float(audio.pts * audio.time_base) - self._start_s if known else None)
        except (av.FFmpegError, ValueError, MemoryError):
            return  # a damaged packet: the gap it leaves becomes silence

    def _note_end(self, packet: Packet) -> None:
        ticks = packet.pts if packet.pts is not None else packet.dts
        if ticks is not None and packet.time_base is not None:
            end_s = float((ticks + (packet.duration or 0)) * packet.time_base) - self._start_s
            self._content_s = max(self._content_s, end_s)

    def _result(self, track: AudioTrack | None) -> SplitResult:
        self._check_complete()
        for cut in self._cuts.flush():
            self._scenes.cut(cut)
        audio = track if track is not None and track.duration_s > 0 else None
        end_s = max(self._last_s + self._frame_s, audio.duration_s if audio else 0.0)
        if track is not None and audio is None:
            track.path.unlink()
        scenes = self._scenes.finish(end_s)
        self._progress.done()
        return SplitResult(
            info=replace(self._info, duration_s=end_s, audio=self._info.audio if audio else None),
            scenes=scenes,
            audio=audio.path if audio else None,
            windows=tuple(audio.windows.spans_s) if audio else (),
            version=f"{ALGORITHM}-{self._mode}",
        )

    def _check_complete(self) -> None:
        """Refuse a file that is mostly undecodable, or ends well before its header says."""
        if self._frames == 0:
            raise no_picture(self._info)
        if self._errors > self._frames:
            raise BadMedia(
                f"{self._errors} of {self._errors + self._frames} pictures could not be decoded; "
                "the file is damaged, export it again."
            )
        declared_s = self._info.duration_s
        missing_s = declared_s - max(self._content_s, self._last_s)
        header_tells = any(name in self._info.container.split(",") for name in _HEADER_TELLS)
        if header_tells and missing_s > max(_TRUNCATED_S, _TRUNCATED_SHARE * declared_s):
            raise BadMedia(
                f"The file is truncated: the header says {declared_s:.1f} s, content ends at "
                f"{max(self._content_s, self._last_s):.1f} s; upload it again."
            )


class _Progress:
    """Calls back with the fraction done, about twice a second of wall time."""

    def __init__(self, info: MediaInfo, on_progress: Callable[[float], None] | None) -> None:
        self._info = info
        self._on_progress = on_progress
        self._told_s = time.monotonic()
        self._fraction = 0.0

    def tell(self, content_s: float, packet: Packet) -> None:
        now_s = time.monotonic()
        if self._on_progress is None or now_s - self._told_s < _PROGRESS_EVERY_S:
            return
        self._told_s = now_s
        if self._info.duration_s > 0:
            fraction = content_s / self._info.duration_s
        else:
            fraction = (packet.pos or 0) / self._info.size_bytes
        self._fraction = max(self._fraction, min(0.99, fraction))
        self._on_progress(self._fraction)

    def done(self) -> None:
        if self._on_progress is not None:
            self._on_progress(1.0)


def _end_of(stream: AvVideoStream | AvAudioStream) -> Packet:
    """Return the empty packet that stands for the end of a stream."""
    packet = Packet()
    packet.stream = stream
    return packet
