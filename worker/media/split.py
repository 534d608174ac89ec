"""The one decode pass: scenes with their keyframes, sprites, and the audio, from a local file.

Memory does not grow with the video's length: keyframes are written when their scene closes, audio as it comes, and
the detectors remember a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .audio import AUDIO_NAME, DEFAULT_TIME_BASE, AudioTrack, is_plausible
from .boundary import media_errors
from .cuts import CutFinder
from .exact import ExactPictures
from .guard import Guard
from .judge import Judge
from .limits import MediaLimits
from .packets import Progress, read_packets
from .planes import thumb_size
from .probe import configure_decoder, describe, open_media
from .results import MediaInfo, Mode, SplitResult
from .sampling import Look, Sampler
from .scenes import SceneBuilder
from .sprites import SpriteBuilder

#: Changes whenever the same file could give other scenes or keyframes than before.
ALGORITHM = "onepass-4"


def split(
    path: Path,
    out_dir: Path,
    *,
    limits: MediaLimits,
    mode: Mode = "exact",
    part_s: float = 120.0,
    weights: Path | None = None,
    min_confidence: float = 0.5,
    on_progress: Callable[[float], None] | None = None,
) -> SplitResult:
    """Decode ``path`` once; write keyframes and sprites (JPEG) and audio (WAV) into ``out_dir`` and return the scenes.

    Args:
        mode: "fast" skips pictures that no other refers to and the loop filter: cuts may be off by a few frames where
            no key picture marks them, and keyframes are key pictures of the file where a scene has any (one at least).
            "accurate" lets the network read every frame: several times the CPU time.
        part_s: longest audio window in seconds.
        weights: of TransNetV2, which judges doubtful cuts; None, or in fast mode: the cheap features decide alone.
        min_confidence: what is less certainly a cut is none, 0..1.
        on_progress: called with a fraction 0..1 about twice a second; a ScenefleetError that it raises ends the pass.

    Raises BadMedia or LimitExceeded with one sentence; OSError when ``out_dir`` can't be written.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with media_errors(limits), open_media(path, limits) as container, ExitStack() as stack:
        info = describe(container, path, limits)
        judge = None
        if weights is not None and mode != "fast":
            judge = Judge(weights, every=mode == "accurate")
        cuts = CutFinder(judge, min_confidence)
        one_pass = _Pass(container, info, limits, out_dir, cuts, part_s=part_s, mode=mode)
        if one_pass.track is not None:
            stack.enter_context(one_pass.track)
        progress = Progress(info.duration_s, info.size_bytes, on_progress)
        for packet in read_packets(container, one_pass.decoded, one_pass.guard.count_error):
            one_pass.take(packet)
            progress.tell(one_pass.guard.content_s, packet.pos)
        stack.close()
        result = one_pass.result(f"{ALGORITHM}-{mode}" + ("" if judge or mode == "fast" else "-cheap"))
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
        cuts: CutFinder,
        *,
        part_s: float,
        mode: Mode,
    ) -> None:
        self.guard = Guard(info, limits)
        self._info = info
        self._out_dir = out_dir
        self._start_s = (container.start_time or 0) / 1e6
        self._video = cast(VideoStream, container.streams[info.video.index])
        configure_decoder(self._video, limits, fast=mode == "fast")
        self.decoded: list[VideoStream | AudioStream] = [self._video]
        self.track: AudioTrack | None = None
        if info.audio is not None:
            self.decoded.append(cast(AudioStream, container.streams[info.audio.index]))
            self.track = AudioTrack(
                out_dir / AUDIO_NAME, limits, part_s=part_s, start_s=self._start_s, declared_s=info.duration_s
            )
        #: Seconds a tick lasts, for each stream: Fractions are slow.
        self._tick_s = [float(stream.time_base or DEFAULT_TIME_BASE) for stream in container.streams]
        self._exact = ExactPictures(self._video, limits) if mode == "fast" else None
        self._cuts = cuts
        self._scenes = SceneBuilder(out_dir, limits, self._exact)
        self._sprites = SpriteBuilder()
        self._shown_as = (0, 1.0)
        self._sampler = Sampler(thumb_size(info.video.width, info.video.height))
        self._last_s = -1.0
        #: From one frame to the next, for frames without a time and for the end of the last.
        self._frame_s = 1 / info.video.avg_fps if info.video.avg_fps > 0 else 0.04

    def take(self, packet: Packet[Any]) -> None:
        """Decode the packet if its stream is used."""
        ticks = packet.pts if packet.pts is not None else packet.dts
        ts_s = None
        if ticks is not None:
            ts_s = self._seconds(ticks, packet.stream_index)
            end_s = self._seconds(ticks + (packet.duration or 0), packet.stream_index)
            self.guard.content_s = max(self.guard.content_s, end_s)
        if packet.stream is self._video:
            if packet.size:
                context = self._video.codec_context
                self.guard.charge_picture(packet.size, context.width * context.height, ts_s)
            self._decode_video(packet)
        elif self.track is not None and packet.stream is self.decoded[-1]:
            self.track.decode(packet)
            self.guard.check_sound(self.track.duration_s)
        self.guard.budget.reach(max(self._last_s, self.track.duration_s if self.track else 0.0))

    def result(self, version: str) -> SplitResult:
        """Judge the file and close the last scene; the audio file must be closed by now."""
        self.guard.check_complete()
        for look in self._sampler.flush():
            self._take_look(look)
        for cut in self._cuts.flush():
            self._scenes.cut(cut)
        audio, windows = self.track.result() if self.track else (None, ())
        end_s = max(self._last_s + self._frame_s, self.track.duration_s if self.track else 0.0)
        rotation_deg, pixel_aspect = self._shown_as
        return SplitResult(
            info=replace(self._info, duration_s=end_s, audio=self._info.audio if audio else None),
            scenes=self._scenes.finish(end_s),
            audio=audio,
            windows=windows,
            version=version,
            sprites=self._sprites.finish(
                self._out_dir, end_s, rotation_deg=rotation_deg, pixel_aspect=pixel_aspect
            ),
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
        if self._last_s < 0:
            clockwise_deg = round(-frame.rotation / 90) * 90 % 360
            self._info = replace(self._info, video=replace(self._info.video, rotation_deg=clockwise_deg))
            aspect = float(self._video.sample_aspect_ratio or 1)
            # Absurd ones count as square.
            self._shown_as = clockwise_deg, aspect if 0.2 <= aspect <= 5.0 else 1.0
            self._scenes.show_as(*self._shown_as)
        self._last_s = ts_s
        for look in self._sampler.feed(ts_s, frame):
            self._take_look(look)

    def _take_look(self, look: Look) -> None:
        for cut in self._cuts.feed(look.ts_s, look.thumb):
            self._scenes.cut(cut)
        self._sprites.feed(look.ts_s, look.thumb)
        look.source = self._exact.source_of(look.frame) if self._exact is not None else None
        self._scenes.feed(look)

    def _time_of(self, frame: VideoFrame) -> float:
        """Return when the frame is shown."""
        ticks = frame.pts if frame.pts is not None else frame.dts
        if ticks is not None:
            ts_s = self._seconds(ticks, self._info.video.index)
            if is_plausible(ts_s, self._last_s, self._info.duration_s):
                return ts_s
        return self._last_s + self._frame_s

    def _seconds(self, ticks: int, stream: int) -> float:
        """Return ticks of a stream's time base as seconds on the container's clock."""
        return ticks * self._tick_s[stream] - self._start_s
