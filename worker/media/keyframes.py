"""Which frames stand for a scene, chosen without a second pass and in constant memory.

Frames are held by reference. Recent ones wait until every cut up to their time is settled; those of the open scene
are thinned by doubling the stride, so at most ``HELD`` of each are alive however long a scene is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from av.packet import Packet
from av.video.frame import VideoFrame

from .cuts import SETTLE_S, Cut
from .hardcuts import difference
from .pictures import bound_frame
from .planes import Thumb, frame_bytes, sharpness

#: Frames held for the open scene, and as many for the time not settled yet.
HELD = 16

#: Frames that take more than this are scaled to keyframe size before they are held.
_LARGE_BYTES = 4 * 2**20

#: Pictures that differ less than this (grey levels) from the keyframe before add nothing.
_SAME_PICTURE = 1.0


@dataclass(slots=True)
class Candidate:
    """A frame that may become a keyframe."""

    ts_s: float
    frame: VideoFrame
    thumb: Thumb
    #: In fast mode: the packet that holds this picture alone, to decode it again exactly.
    packet: Packet[Any] | None = None


class Recent:
    """The candidates of the time that may still turn out to belong to another scene."""

    def __init__(self) -> None:
        self._held: deque[Candidate] = deque()

    def offer(self, ts_s: float, frame: VideoFrame, thumb: Thumb, packet: Packet[Any] | None = None) -> None:
        """Hold the frame if the last one held is long enough ago, or if it alone comes with its packet."""
        soon = bool(self._held) and ts_s - self._held[-1].ts_s < SETTLE_S / HELD
        if soon and (packet is None or self._held[-1].packet is not None):
            return
        held = frame if frame_bytes(frame) <= _LARGE_BYTES else bound_frame(frame)
        self._held.append(Candidate(ts_s, held, thumb, packet))

    def take_until(self, ts_s: float) -> list[Candidate]:
        """Hand over the candidates before ``ts_s``."""
        taken = []
        while self._held and self._held[0].ts_s < ts_s:
            taken.append(self._held.popleft())
        return taken


class SceneFrames:
    """The candidates of the open scene, evenly spread over it."""

    def __init__(self) -> None:
        self._held: list[Candidate] = []
        self._stride_s = 0.0

    def add(self, candidate: Candidate) -> None:
        """Keep the candidate if it falls on the stride; halve what is held when there is too much."""
        if self._held and candidate.ts_s - self._held[-1].ts_s < self._stride_s - 1e-6:
            if candidate.packet is not None and self._held[-1].packet is None:
                self._held[-1] = candidate
            return
        self._held.append(candidate)
        if len(self._held) > HELD:
            self._held = self._held[::2]
            self._stride_s = min(b.ts_s - a.ts_s for a, b in zip(self._held, self._held[1:], strict=False))

    def choose(self, start_s: float, end_s: float, begins: Cut | None, ends: Cut | None) -> list[Candidate]:
        """Return the keyframes of a scene, in order: the sharpest of each part of it, at least one.

        Blank pictures, those inside a transition, repetitions, and (in fast mode) those that can't be decoded again
        exactly are left out while others remain.
        """
        clean_from_s = start_s if begins is None else begins.mixed_to_s
        clean_to_s = end_s if ends is None else ends.mixed_from_s
        clean = [c for c in self._held if clean_from_s <= c.ts_s < clean_to_s] or self._held
        visible = [c for c in clean if not c.thumb.blank] or clean
        visible = [c for c in visible if c.packet is not None] or visible
        parts = _parts(end_s - start_s)
        slots: list[list[Candidate]] = [[] for _ in range(parts)]
        span_s = max(end_s - start_s, 1e-6)
        for candidate in visible:
            slots[min(parts - 1, max(0, int((candidate.ts_s - start_s) / span_s * parts)))].append(candidate)
        chosen: list[Candidate] = []
        for slot in filter(None, slots):
            best = slot[0] if len(slot) == 1 else max(slot, key=lambda c: sharpness(c.frame))
            if not chosen or difference(chosen[-1].thumb, best.thumb) >= _SAME_PICTURE:
                chosen.append(best)
        return chosen


def _parts(duration_s: float) -> int:
    """Return how many keyframes a scene of this length gets."""
    return 1 + sum(duration_s >= limit_s for limit_s in (1.0, 3.0, 8.0))
