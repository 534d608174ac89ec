"""Slides: a picture at rest gives way at once to another one at rest.

Two slides of text have the same background and layout, so that their pictures differ less than two moments of a film do. But what
was at rest on the first is gone from the second. Something small may move beside it, such as the head of the one who speaks.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .hardcuts import Cut
from .planes import Plane, Thumb

#: How long a slide is at rest before the change and after it, at least, seconds.
REST_S = 1.0
#: Blocks of so many pixels are compared; one has changed when its mean change is larger than this (grey levels).
_BLOCK_PX, _CHANGED = 10, 3.0
#: Share of the blocks that must be at rest, and of those the share that must change at once.
_RESTING, _CHANGING = 0.5, 0.1
#: Root mean square of the horizontal slopes from which on a block shows something, and least number of such blocks.
_SLOPE, _FEWEST = 6.0, 4
#: Slopes of a block that correlate less than this are others; share of the blocks of the first slide of which that must be so.
_OTHERS, _GONE = 0.6, 0.45
#: Where the middle of the first is found with this correlation, the camera jumped or a page was scrolled.
_SAME = 0.6
#: After the change an encoder improves the picture for this long, seconds.
_SHARPENS_S = 0.25
#: There is no fitted model: it is a rule.
CONFIDENCE = 0.9


@dataclass(slots=True)
class _Change:
    ts_s: float
    before: Plane
    #: Blocks that were at rest before.
    resting: NDArray[np.bool_]


class Slides:
    """Finds changes of slides in a stream of thumbs, ``REST_S`` after they happened."""

    def __init__(self) -> None:
        self._last: Plane | None = None
        #: What each block showed when it last changed: a slow move adds up.
        self._rested: Plane = np.zeros(0, np.uint8)
        self._changed_s: NDArray[np.float64] = np.zeros(0)
        self._change: _Change | None = None

    def feed(self, ts_s: float, thumb: Thumb) -> Cut | None:
        """Take the next frame; return the change that is settled by it."""
        last, self._last = self._last, thumb.y
        if last is None:
            self._changed_s = np.full(_blocks(thumb.y).shape, ts_s)
            self._rested = thumb.y.copy()
            return None
        found = None
        if self._change and ts_s - self._change.ts_s >= REST_S:
            found = self._settle(last)
        changed = _blocks(cv2.absdiff(self._rested, thumb.y)) > _CHANGED
        if not changed.any():
            return found
        if self._change is None:
            resting = ts_s - self._changed_s >= REST_S
            if resting.mean() >= _RESTING and changed[resting].mean() >= _CHANGING:
                self._change = _Change(ts_s, last, resting)
        if changed.any():
            self._changed_s[changed] = ts_s
            pixels = cv2.resize(
                changed.astype(np.uint8), thumb.y.shape[::-1], interpolation=cv2.INTER_NEAREST
            )
            cv2.copyTo(thumb.y, pixels, self._rested)
        return found

    def flush(self) -> Cut | None:
        """Return the change shortly before the end."""
        return self._settle(self._last) if self._change and self._last is not None else None

    def _settle(self, now: Plane) -> Cut | None:
        change, self._change = self._change, None
        assert change is not None
        resting = change.resting & (self._changed_s <= change.ts_s + _SHARPENS_S)
        if resting.mean() < _RESTING:
            return None
        one, two = (cv2.Sobel(y, cv2.CV_32F, 1, 0, scale=0.25) for y in (change.before, now))
        shown, after, both = (_blocks(product) for product in (one * one, two * two, one * two))
        shows = resting & (shown > _SLOPE**2)
        if shows.sum() < _FEWEST:
            return None
        gone = both[shows] < _OTHERS * np.sqrt(shown[shows] * after[shows] + 1e-6)
        if gone.mean() < _GONE or _moved(one, two) > _SAME:
            return None
        return Cut(change.ts_s, "cut", change.ts_s, change.ts_s, CONFIDENCE)


def _moved(one: Plane, two: Plane) -> float:
    """Return how well the middle of the first is found anywhere in the second, as a correlation."""
    height, width = one.shape
    middle = one[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4]
    return float(cv2.matchTemplate(two, middle, cv2.TM_CCOEFF_NORMED).max())


def _blocks(plane: Plane) -> Plane:
    """Return the means of a plane's blocks."""
    height, width = (max(1, side // _BLOCK_PX) for side in plane.shape)
    means: Plane = cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA)
    return means
