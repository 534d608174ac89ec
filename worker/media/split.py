"""The one decode pass: scenes with their keyframes, sprites, and the audio, from a local file; or from a span of it.

Memory does not grow with the video's length: keyframes are written when their scene closes, audio as it comes, and
the detectors remember a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
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
from .cuts import SETTLE_S, CutFinder
from .exact import ExactPictures
from .guard import Counts, Guard
from .hardcuts import Cut
from .judge import Judge
from .limits import MediaLimits
from .packets import Progress, read_packets
from .planes import fine_size, thumb_size
from .probe import configure_decoder, describe, open_media
from .results import MediaInfo, Mode, Span, SpansDiffer, SplitResult
from .sampling import Look, Sampler
from .scenes import SceneBuilder
from .spans import CHECK_S, SpanResult
from .sprites import SpriteBuilder

#: Times that differ less are the same, seconds.
_ROUNDING_S = 1e-6
#: How long before the wanted picture to seek, seconds: some containers are searched roughly.
_LEADS_S = (0.0, 2.0, 20.0)
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
        cuts, version = _cut_finder(mode, weights, min_confidence, resumed=False)
        one_pass = _Pass(container, info, limits, out_dir, cuts, part_s=part_s, mode=mode)
        if one_pass.track is not None:
            stack.enter_context(one_pass.track)
        progress = Progress(info.duration_s, info.size_bytes, on_progress)
        for packet in read_packets(container, one_pass.decoded, one_pass.guard.count_error):
            one_pass.take(packet)
            progress.tell(one_pass.guard.content_s, packet.pos)
        stack.close()
        result = one_pass.result(version)
    progress.finish()
    return result


def split_span(
    path: Path,
    out_dir: Path,
    *,
    span: Span,
    limits: MediaLimits,
    mode: Mode = "exact",
    weights: Path | None = None,
    min_confidence: float = 0.5,
    on_progress: Callable[[float], None] | None = None,
) -> SpanResult:
    """Decode a span that ``plan_spans`` has found; write its keyframes and candidates (JPEG) into ``out_dir``.

    Raises SpansDiffer where decoding can't begin in the middle of the file; otherwise arguments and errors as for ``split``.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with media_errors(limits), open_media(path, limits) as container:
        info = describe(container, path, limits)
        cuts, version = _cut_finder(mode, weights, min_confidence, resumed=span.key_pts is not None)
        if span.key_pts is not None:
            _seek(container, info.video.index, span.key_pts)
        one_pass = _Pass(container, info, limits, out_dir, cuts, mode=mode, span=span)
        progress = Progress((span.to_s or info.duration_s) - span.from_s, info.size_bytes, on_progress)
        for packet in read_packets(container, one_pass.decoded, one_pass.note_unreadable):
            one_pass.take(packet)
            progress.tell(one_pass.guard.content_s - span.from_s, packet.pos)
            if one_pass.is_settled:
                break
        result = one_pass.span_result(version)
    progress.finish()
    return result


def _cut_finder(
    mode: Mode, weights: Path | None, min_confidence: float, *, resumed: bool
) -> tuple[CutFinder, str]:
    """Return what finds the cuts, and the version of the result."""
    judge = None
    if weights is not None and mode != "fast":
        judge = Judge(weights, every=mode == "accurate")
    version = f"{ALGORITHM}-{mode}" + ("" if judge or mode == "fast" else "-cheap")
    return CutFinder(judge, min_confidence, resumed=resumed), version


def _seek(container: InputContainer, stream: int, pts: int) -> None:
    """Go to the packet of a stream with this time, or a little before it; raises SpansDiffer."""
    video = cast(VideoStream, container.streams[stream])
    tick_s = float(video.time_base or DEFAULT_TIME_BASE)
    for lead_s in _LEADS_S:
        with suppress(av.FFmpegError):
            container.seek(pts - round(lead_s / tick_s), stream=video)
            for packet in container.demux(video):
                if packet.pts == pts and packet.is_keyframe:
                    container.seek(pts - round(lead_s / tick_s), stream=video)
                    return
                if packet.pts is not None and (packet.pts - pts) * tick_s > _LEADS_S[-1]:
                    break
    raise SpansDiffer("the file can't be read from the middle")


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
        mode: Mode,
        part_s: float = 0.0,
        span: Span | None = None,
    ) -> None:
        """``part_s``: as for ``split``; ``span``: what of the file is decoded, without its sound. None: all."""
        self._info = info
        self._out_dir = out_dir
        self._start_s = (container.start_time or 0) / 1e6
        self._video = cast(VideoStream, container.streams[info.video.index])
        #: Seconds a tick lasts, for each stream: Fractions are slow.
        self._tick_s = [float(stream.time_base or DEFAULT_TIME_BASE) for stream in container.streams]
        self._span = span
        #: The packet that decoding begins with, until it has come.
        self._awaited = None if span is None else span.key_pts
        begins_s = -1.0 if self._awaited is None else self._seconds(self._awaited, info.video.index)
        self.guard = Guard(info, limits, from_s=max(0.0, begins_s))
        #: Of what is in the span.
        self._counts = Counts()
        #: Cuts in the span and near it.
        self._near: list[Cut] = []
        self._looked_s = begins_s
        configure_decoder(self._video, limits, fast=mode == "fast")
        self.decoded: list[VideoStream | AudioStream] = [self._video]
        self.track: AudioTrack | None = None
        if info.audio is not None and span is None:
            self.decoded.append(cast(AudioStream, container.streams[info.audio.index]))
            self.track = AudioTrack(
                out_dir / AUDIO_NAME, limits, part_s=part_s, start_s=self._start_s, declared_s=info.duration_s
            )
        self._exact = ExactPictures(self._video, limits) if mode == "fast" else None
        self._cuts = cuts
        self._scenes = SceneBuilder(
            out_dir, limits, self._exact, span, fine_size(info.video.width, info.video.height)
        )
        self._sprites = SpriteBuilder()
        #: Rotation and pixel aspect of the first picture.
        self._shown_as: tuple[int, float] | None = None
        self._sampler = Sampler(thumb_size(info.video.width, info.video.height))
        #: Pictures before the one that decoding begins with may be damaged, as they refer to earlier ones.
        self._last_s = begins_s - _ROUNDING_S
        #: From one frame to the next, for frames without a time and for the end of the last.
        self._frame_s = 1 / info.video.avg_fps if info.video.avg_fps > 0 else 0.04

    @property
    def is_settled(self) -> bool:
        """Whether nothing that comes can change the span."""
        to_s = None if self._span is None else self._span.to_s
        return to_s is not None and self._looked_s >= to_s + CHECK_S + SETTLE_S

    def note_unreadable(self) -> None:
        """Refuse a span where the whole file could be read."""
        raise SpansDiffer("the file can't be read on from the middle")

    def take(self, packet: Packet[Any]) -> None:
        """Decode the packet if its stream is used."""
        ticks = packet.pts if packet.pts is not None else packet.dts
        ts_s = None
        if ticks is not None:
            ts_s = self._seconds(ticks, packet.stream_index)
            end_s = self._seconds(ticks + (packet.duration or 0), packet.stream_index)
            self.guard.content_s = max(self.guard.content_s, end_s)
        if packet.stream is self._video:
            if self._awaited is not None:
                if packet.pts != self._awaited or not packet.is_keyframe:
                    return
                self._awaited = None
            if packet.size:
                context = self._video.codec_context
                pixels = context.width * context.height
                self.guard.charge_picture(packet.size, pixels, ts_s)
                if self._is_own(ts_s):
                    self._counts.pixels += pixels
                    self._counts.bytes += packet.size
            self._decode_video(packet, ts_s)
        elif self.track is not None and packet.stream is self.decoded[-1]:
            self.track.decode(packet)
            self.guard.check_sound(self.track.duration_s)
        self.guard.budget.reach(max(self._last_s, self.track.duration_s if self.track else 0.0))

    def result(self, version: str) -> SplitResult:
        """Judge the file and close the last scene; the audio file must be closed by now."""
        self.guard.check_complete()
        self._flush()
        audio, windows = self.track.result() if self.track else (None, ())
        end_s = max(self._last_s + self._frame_s, self.track.duration_s if self.track else 0.0)
        rotation_deg, pixel_aspect = self._shown_as or (0, 1.0)
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

    def span_result(self, version: str) -> SpanResult:
        """Return what was found of the span."""
        is_end = not self.is_settled
        if is_end:
            self._flush()
        if self._shown_as is None or self._span is None:
            raise SpansDiffer("no picture of the span could be decoded")
        self._counts.cpu_s, self._counts.content_s = self.guard.budget.spent_s, self.guard.budget.content_s
        scenes, head, tail = self._scenes.finish_span()
        return SpanResult(
            span=self._span,
            info=self._info,
            pixel_aspect=self._shown_as[1],
            version=version,
            cuts=tuple(self._near),
            scenes=scenes,
            head=head,
            tail=tail,
            tiles=tuple(self._sprites.tiles),
            last_s=self._last_s,
            is_end=is_end,
            frame_s=self._frame_s,
            counts=self._counts,
            content_s=self.guard.content_s,
            keyframes=self._scenes.count.keyframes,
            keyframe_bytes=self._scenes.count.keyframe_bytes,
        )

    def _flush(self) -> None:
        """Look at what is left at the end of the file."""
        for look in self._sampler.flush():
            self._take_look(look)
        for cut in self._cuts.flush():
            self._cut(cut)

    def _is_own(self, ts_s: float | None) -> bool:
        return self._span is None or ts_s is None or self._span.has(ts_s)

    def _cut(self, cut: Cut) -> None:
        self._scenes.cut(cut)
        if self._span is not None and any(
            self._span.has(cut.ts_s + near_s) for near_s in (-CHECK_S, 0.0, CHECK_S)
        ):
            self._near.append(cut)

    def _decode_video(self, packet: Packet[Any], ts_s: float | None) -> None:
        if self._exact is not None:
            self._exact.note(packet)
        try:
            frames = self._video.codec_context.decode(packet if packet.size else None)
        except MemoryError:
            raise  # at the limit pictures would be lost one after another
        except av.FFmpegError:
            self.guard.count_error()
            self._counts.errors += self._is_own(ts_s)
            return
        for frame in frames:
            self._take_frame(frame)

    def _take_frame(self, frame: VideoFrame) -> None:
        ts_s = self._time_of(frame)
        self.guard.check_frame(frame.width, frame.height, ts_s)
        if ts_s <= self._last_s:
            return  # shown at no time of its own
        self._counts.frames += self._is_own(ts_s)
        if self._shown_as is None:
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
        self._looked_s = look.ts_s
        for cut in self._cuts.feed(look.ts_s, look.thumb):
            self._cut(cut)
        if self._is_own(look.ts_s):
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
