"""Turns cuts and frames into scenes, writing each scene's keyframes when it closes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shared.errors import LimitExceeded

from .cuts import SETTLE_S
from .exact import ExactPictures, Source
from .hardcuts import Cut
from .keyframes import Candidate, Recent, SceneFrames
from .limits import MediaLimits
from .pictures import write_jpeg
from .planes import Thumb
from .results import Keyframe, SceneCut, Span
from .sampling import Look


@dataclass
class Stored:
    """A picture, stored already, of a scene that goes on beyond the span: it may become a keyframe (``keyframes.Shown``)."""

    keyframe: Keyframe
    sharpness: float
    thumb: Thumb
    source: Source | None = None
    is_key = False

    @property
    def ts_s(self) -> float:
        return self.keyframe.ts_s


class SceneBuilder:
    """Collects frames for the open scene and closes it at each cut.

    Of a span it closes the scenes between two cuts in it; of what is before and after them it stores the candidates.
    """

    def __init__(
        self,
        out_dir: Path,
        limits: MediaLimits,
        exact: ExactPictures | None,
        span: Span | None,
        fine_size: tuple[int, int],
    ) -> None:
        """``span``: what of the file these scenes are of; None: all of it. ``fine_size``: as ``planes.fine_size`` says."""
        self._out_dir = out_dir
        self._span = span
        self._exact = exact
        self._fine_size = fine_size
        self.count = SceneCount(limits)
        self._recent = Recent()
        self._open: SceneFrames[Look] = SceneFrames()
        self._begins: Cut | None = None
        self._head: tuple[Candidate[Stored], ...] = ()
        self._done: list[SceneCut] = []
        self._rotation_deg = 0
        self._pixel_aspect = 1.0

    def show_as(self, rotation_deg: int, pixel_aspect: float) -> None:
        """Set how pictures are turned (clockwise) and stretched (a pixel's width over its height)."""
        self._rotation_deg, self._pixel_aspect = rotation_deg, pixel_aspect

    def feed(self, look: Look) -> None:
        """Take the next frame, after the cuts it settled."""
        self._settle(look.ts_s - SETTLE_S)
        self._recent.offer(look)

    def cut(self, cut: Cut) -> None:
        """Close the open scene at ``cut`` and open the next one."""
        if self._span is not None and not self._span.has(cut.ts_s):
            return
        self._settle(cut.ts_s)
        if self._span is not None and self._begins is None:
            self._head = self._store("head")
        else:
            self._close(cut.ts_s, cut)
        self._begins = cut
        self._open = SceneFrames()

    def finish(self, end_s: float) -> tuple[SceneCut, ...]:
        """Close the last scene at ``end_s``; return all of them."""
        self._add(self._recent.take_rest())
        self._close(end_s, None)
        return tuple(self._done)

    def finish_span(
        self,
    ) -> tuple[tuple[SceneCut, ...], tuple[Candidate[Stored], ...], tuple[Candidate[Stored], ...]]:
        """Return the scenes between the cuts, and the candidates before the first and after the last one.

        Without a cut all candidates are before it.
        """
        self._add(self._recent.take_rest())
        if self._begins is None:
            return (), self._store("head"), ()
        return tuple(self._done), self._head, self._store("tail")

    def _settle(self, until_s: float) -> None:
        self._add(self._recent.take_until(until_s))

    def _add(self, looks: Iterable[Look]) -> None:
        for look in looks:
            self._open.add(look, self._fine_size, hold=self._span is None or self._span.has(look.ts_s))

    def _close(self, end_s: float, ends: Cut | None) -> None:
        idx = len(self._done)
        start_s = 0.0 if self._begins is None else self._begins.ts_s
        chosen = self._open.choose(start_s, end_s, self._begins, ends)
        self.count.add_scene(end_s)
        keyframes = (self._write(f"{idx:05d}_{ordinal}.jpg", look) for ordinal, look in enumerate(chosen))
        self._done.append(make_scene(idx, self._begins, end_s, keyframes))

    def _store(self, name: str) -> tuple[Candidate[Stored], ...]:
        """Write the candidates of the open scene."""
        stored = []
        for number, candidate in enumerate(self._open.held):
            look = candidate.shown
            picture = Stored(self._write(f"{name}_{number}.jpg", look), look.sharpness, look.thumb)
            stored.append(Candidate(picture, candidate.luma, candidate.lasting))
        return tuple(stored)

    def _write(self, name: str, look: Look) -> Keyframe:
        """Write a keyframe; raises LimitExceeded past their number or their bytes."""
        frame = look.frame
        if self._exact is not None and look.source is not None:
            frame = self._exact.decode(look.source) or frame
        path = self._out_dir / name
        width, height = write_jpeg(
            frame, path, rotation_deg=self._rotation_deg, pixel_aspect=self._pixel_aspect
        )
        self.count.add_keyframes(1, path.stat().st_size, look.ts_s)
        return Keyframe(ts_s=look.ts_s, path=path, width=width, height=height)


class SceneCount:
    """Counts scenes and keyframes; every method raises LimitExceeded past a limit."""

    def __init__(self, limits: MediaLimits) -> None:
        self._limits = limits
        self._scenes = 0
        self.keyframes = self.keyframe_bytes = 0

    def add_scene(self, end_s: float) -> None:
        """Count a scene that ends at ``end_s`` seconds."""
        self._scenes += 1
        if self._scenes > self._limits.max_video_scenes:
            raise LimitExceeded(
                f"There are more than {self._limits.max_video_scenes} scenes, the limit, by {end_s:.0f} s; cut the file up"
            )

    def add_keyframes(self, count: int, size_bytes: int, ts_s: float) -> None:
        """Count keyframes of ``size_bytes`` in all, shown up to ``ts_s`` seconds."""
        self.keyframes += count
        self.keyframe_bytes += size_bytes
        limits = self._limits
        if self.keyframes > limits.max_video_keyframes:
            raise LimitExceeded(
                f"There are more than {limits.max_video_keyframes} keyframes, the limit (MAX_VIDEO_KEYFRAMES), by "
                f"{ts_s:.0f} s; cut the file up"
            )
        if self.keyframe_bytes > limits.max_video_keyframe_bytes:
            raise LimitExceeded(
                f"The keyframes take more than {limits.max_video_keyframe_bytes} bytes, the limit (MAX_VIDEO_KEYFRAME_BYTES), "
                f"by {ts_s:.0f} s; cut the file up"
            )


def make_scene(idx: int, begins: Cut | None, end_s: float, keyframes: Iterable[Keyframe]) -> SceneCut:
    """Return the scene that ``begins`` opens (None: the start of the video)."""
    return SceneCut(
        idx=idx,
        start_s=0.0 if begins is None else begins.ts_s,
        end_s=end_s,
        kind="start" if begins is None else begins.kind,
        cut_confidence=1.0 if begins is None else round(begins.confidence, 4),
        keyframes=tuple(keyframes),
    )
