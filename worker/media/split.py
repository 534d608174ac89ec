"""The one decode pass: scenes with their keyframes, and the audio, from a local file.

Memory does not grow with the video's length: keyframes are written when their scene closes, audio as it comes, and
the detectors remember a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import av
from av.audio.stream import AudioStream as AvAudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream as AvVideoStream

from .audio import AUDIO_NAME, DEFAULT_TIME_BASE, AudioFeed, AudioTrack, is_plausible
from .boundary import media_errors
from .cuts import CutFinder
from .exact import ExactPictures
from .guard import Guard
from .limits import MediaLimits
from .packets import read_packets
from .planes import thumb_size
from .probe import configure_decoder, describe, open_media, with_rotation
from .progress import Progress
from .results import Keyframe, MediaInfo, Mode, SceneCut, SplitResult
from .sampling import Look, Sampler
from .scenes import SceneBuilder

__all__ = ["Keyframe", "Mode", "SceneCut", "SplitResult", "split"]

#: Changes whenever the same file could give other scenes or keyframes than before.
ALGORITHM = "onepass-2"


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
    no key picture marks them, and keyframes are key pictures of the file where a scene has any (one at least). ``part_s``: longest audio window in seconds. ``on_progress`` is called with a fraction
    0..1 about twice a second and may raise; the exception passes through once the files are closed. ``threads``: 0
    means one per core, at most 8.
    Raises BadMedia or LimitExceeded with one sentence; OSError when ``out_dir`` can't be written.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with media_errors(limits), open_media(path, limits) as container, ExitStack() as stack:
        info = describe(container, path, limits)
        track = None
        if info.audio is not None:
            track = AudioTrack(
                out_dir / AUDIO_NAME,
                part_s=part_s,
                max_duration_s=limits.max_duration_s,
                declared_s=info.duration_s,
                min_rate_hz=limits.min_sample_rate_hz,
            )
            stack.enter_context(track)
        progress = Progress(info.duration_s, info.size_bytes, on_progress)
        one_pass = _Pass(container, info, limits, out_dir, track, mode=mode, threads=threads)
        for packet in one_pass.packets():
            one_pass.take(packet)
            progress.tell(one_pass.guard.content_s, packet.pos)
        stack.close()
        result = one_pass.result()
    progress.finish()
    return result


class _Pass:
    """Hands each packet of one open container to the decoder and the collectors that want it."""

    def __init__(
        self,
        container: InputContainer,
        info: MediaInfo,
        limits: MediaLimits,
        out_dir: Path,
        track: AudioTrack | None,
        *,
        mode: Mode,
        threads: int,
    ) -> None:
        self.guard = Guard(info, limits)
        self._container = container
        self._info = info
        self._mode = mode
        self._start_s = (container.start_time or 0) / 1e6
        self._video = cast(AvVideoStream, container.streams[info.video.index])
        self._audio = cast(AvAudioStream, container.streams[info.audio.index]) if info.audio else None
        self._track = track
        self._feed = AudioFeed(track, self._audio, self._start_s) if track and self._audio else None
        #: Seconds a tick lasts, for each stream: Fractions are slow.
        self._tick_s = [float(stream.time_base or DEFAULT_TIME_BASE) for stream in container.streams]
        configure_decoder(self._video, limits, threads, fast=mode == "fast")
        self._exact = ExactPictures(self._video, limits) if mode == "fast" else None
        self._cuts = CutFinder()
        self._scenes = SceneBuilder(out_dir, limits, self._exact)
        self._sampler = Sampler(thumb_size(info.video.width, info.video.height))
        self._first = True
        self._last_s = -1.0
        #: From one frame to the next, for frames without a time and for the end of the last.
        self._frame_s = 1 / info.video.avg_fps if info.video.avg_fps > 0 else 0.04

    def packets(self) -> Iterator[Packet[Any]]:
        """Yield what ``take`` wants: every packet, then the ends of the streams that are decoded."""
        decoded = [stream for stream in (self._video, self._audio) if stream is not None]
        return read_packets(self._container, decoded, self.guard.count_error)

    def take(self, packet: Packet[Any]) -> None:
        """Decode the packet if its stream is used."""
        ticks = packet.pts if packet.pts is not None else packet.dts
        ts_s = None
        if ticks is not None:
            ts_s = self._seconds(ticks, packet.stream_index)
            self.guard.note_content(self._seconds(ticks + (packet.duration or 0), packet.stream_index))
        if packet.stream is self._video:
            if packet.size:
                context = self._video.codec_context
                self.guard.charge_picture(packet.size, context.width * context.height, ts_s)
            self._decode_video(packet)
        elif self._feed is not None and packet.stream is self._audio:
            self._feed.take(packet)
            assert self._track is not None
            self.guard.check_sound(self._track.duration_s)
        self.guard.check_cost(max(self._last_s, self._track.duration_s if self._track else 0.0))

    def result(self) -> SplitResult:
        """Judge the file and close the last scene; the audio file must be closed by now."""
        self.guard.check_complete()
        for look in self._sampler.flush():
            self._take_look(look)
        for cut in self._cuts.flush():
            self._scenes.cut(cut)
        track = self._track
        if track is not None and track.duration_s == 0:
            track.path.unlink()
            track = None
        end_s = max(self._last_s + self._frame_s, track.duration_s if track else 0.0)
        return SplitResult(
            info=replace(self._info, duration_s=end_s, audio=self._info.audio if track else None),
            scenes=self._scenes.finish(end_s),
            audio=track.path if track else None,
            windows=tuple(track.windows.spans_s) if track else (),
            version=f"{ALGORITHM}-{self._mode}",
        )

    def _decode_video(self, packet: Packet[Any]) -> None:
        if self._exact is not None:
            self._exact.note(packet)
        try:
            frames = self._video.codec_context.decode(packet if packet.size else None)
        except MemoryError:
            raise  # at the limit pictures would be lost one after another
        except av.FFmpegError:
            self.guard.count_error()
            return
        for frame in frames:
            self._take_frame(frame)

    def _take_frame(self, frame: VideoFrame) -> None:
        ts_s = self._time_of(frame)
        self.guard.check_frame(frame.width, frame.height, ts_s)
        if ts_s <= self._last_s:
            return  # shown at no time of its own
        self._last_s = ts_s
        if self._first:
            self._first = False
            self._info = with_rotation(self._info, frame)
            self._scenes.show_as(self._info.video.rotation_deg, self._pixel_aspect())
        for look in self._sampler.feed(ts_s, frame):
            self._take_look(look)

    def _take_look(self, look: Look) -> None:
        for cut in self._cuts.feed(look.ts_s, look.thumb):
            self._scenes.cut(cut)
        source = self._exact.source_of(look.frame) if self._exact is not None else None
        self._scenes.feed(look.ts_s, look.frame, look.thumb, source)

    def _time_of(self, frame: VideoFrame) -> float:
        """Return when the frame is shown."""
        ticks = frame.pts if frame.pts is not None else frame.dts
        if ticks is not None:
            ts_s = self._seconds(ticks, self._info.video.index)
            if is_plausible(ts_s, self._last_s, self._info.duration_s):
                return ts_s
        return self._last_s + self._frame_s

    def _pixel_aspect(self) -> float:
        """Return a pixel's width over its height; absurd ones count as square."""
        ratio = self._video.sample_aspect_ratio
        aspect = float(ratio) if ratio else 1.0
        return aspect if 0.2 <= aspect <= 5.0 else 1.0

    def _seconds(self, ticks: int, stream: int) -> float:
        """Return ticks of a stream's time base as seconds on the container's clock."""
        return ticks * self._tick_s[stream] - self._start_s
