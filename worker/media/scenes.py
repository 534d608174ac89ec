"""Turns cuts and frames into scenes, writing each scene's keyframes when it closes."""

from __future__ import annotations

from pathlib import Path

from shared.errors import LimitExceeded

from .cuts import SETTLE_S
from .exact import ExactPictures
from .hardcuts import Cut
from .keyframes import Recent, SceneFrames
from .limits import MediaLimits
from .pictures import write_jpeg
from .results import Keyframe, SceneCut
from .sampling import Look


class SceneBuilder:
    """Collects frames for the open scene and closes it at each cut."""

    def __init__(self, out_dir: Path, limits: MediaLimits, exact: ExactPictures | None) -> None:
        self._out_dir = out_dir
        self._limits = limits
        self._keyframes = self._keyframe_bytes = 0
        self._exact = exact
        self._recent = Recent()
        self._open = SceneFrames()
        self._begins: Cut | None = None
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
        self._settle(cut.ts_s)
        self._close(cut.ts_s, cut)
        self._begins = cut
        self._open = SceneFrames()

    def finish(self, end_s: float) -> tuple[SceneCut, ...]:
        """Close the last scene at ``end_s``; return all of them."""
        for candidate in self._recent.take_rest():
            self._open.add(candidate)
        self._close(end_s, None)
        return tuple(self._done)

    def _settle(self, until_s: float) -> None:
        for candidate in self._recent.take_until(until_s):
            self._open.add(candidate)

    def _close(self, end_s: float, ends: Cut | None) -> None:
        idx = len(self._done)
        if idx >= self._limits.max_video_scenes:
            raise LimitExceeded(
                f"There are more than {self._limits.max_video_scenes} scenes, the limit, by {end_s:.0f} s; cut the file up"
            )
        start_s = 0.0 if self._begins is None else self._begins.ts_s
        chosen = self._open.choose(start_s, end_s, self._begins, ends)
        self._done.append(
            SceneCut(
                idx=idx,
                start_s=start_s,
                end_s=end_s,
                kind="start" if self._begins is None else self._begins.kind,
                cut_confidence=1.0 if self._begins is None else round(self._begins.confidence, 4),
                keyframes=tuple(self._write(idx, *numbered) for numbered in enumerate(chosen)),
            )
        )

    def _write(self, idx: int, ordinal: int, candidate: Look) -> Keyframe:
        """Write a keyframe; raises LimitExceeded past their number or their bytes."""
        frame = candidate.frame
        if self._exact is not None and candidate.source is not None:
            frame = self._exact.decode(candidate.source) or frame
        path = self._out_dir / f"{idx:05d}_{ordinal}.jpg"
        width, height = write_jpeg(
            frame, path, rotation_deg=self._rotation_deg, pixel_aspect=self._pixel_aspect
        )
        self._keyframes += 1
        self._keyframe_bytes += path.stat().st_size
        limits = self._limits
        if self._keyframes > limits.max_video_keyframes:
            raise LimitExceeded(
                f"There are more than {limits.max_video_keyframes} keyframes, the limit (MAX_VIDEO_KEYFRAMES), by "
                f"{candidate.ts_s:.0f} s; cut the file up"
            )
        if self._keyframe_bytes > limits.max_video_keyframe_bytes:
            raise LimitExceeded(
                f"The keyframes take more than {limits.max_video_keyframe_bytes} bytes, the limit (MAX_VIDEO_KEYFRAME_BYTES), "
                f"by {candidate.ts_s:.0f} s; cut the file up"
            )
        return Keyframe(ts_s=candidate.ts_s, path=path, width=width, height=height)
