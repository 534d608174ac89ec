"""How much two pictures have in common, in ways that a change of light or a moving camera leaves alone.

Each looks at something else: where the edges are, which colours there are, and what each part of the picture shows.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from .planes import Plane, Thumb

#: Edges: this share of a picture with the steepest slopes, but none flatter (grey levels of Sobel's filter), and how far an edge
#: may move, in pixels of a thumb.
_EDGES, _FLAT, _MOVED = 0.15, 12.0, 1
#: Blocks and how far they are searched, in pixels of a thumb's half; those that vary less (grey levels) show nothing.
_BLOCK, _REACH, _UNIFORM = 16, 8, 2.0
#: Colours: bins of Y, U and V, and the range of each.
_BINS, _RANGES = (16, 16, 16), (0, 256, 64, 192, 64, 192)


def edge_change(before: Plane, after: Plane) -> float:
    """Return the share of edges that the other picture does not have: 0 the same place in another light, about 1 another scene.

    The smaller share of the two pictures, over that of unrelated ones: what leaves the picture takes its edges along and brings none
    (after Zabih, Miller and Mai, "A feature-based algorithm for detecting and classifying scene breaks", 1995).
    """
    one, two = _edges(before), _edges(after)
    near = np.ones((2 * _MOVED + 1, 2 * _MOVED + 1), np.uint8)
    shares = []
    for edges, others in ((one, two), (two, one)):
        around = cv2.dilate(others, near)
        count, by_chance = int(edges.sum()), 1 - float(around.mean())
        # Without edges nothing is known.
        shares.append((1 - float((edges & around).sum()) / count) / max(by_chance, 0.1) if count else 1.0)
    return min(1.0, *shares)


def shared_colours(before: Thumb, after: Thumb) -> float:
    """Return the share of pixels whose colours the other picture has as often, 0..1: the histograms' intersection."""
    return float(np.minimum(_colours(before), _colours(after)).sum())


def matching_blocks(before: Plane, after: Plane) -> float:
    """Return the mean correlation of each block of ``after`` with its best match nearby in ``before``, -1..1.

    About 0.9 where the camera or the light moves, 0.5 between scenes; 0 where nothing is to be seen.
    """
    old, new = _soft_half(before), _soft_half(after)
    height, width = new.shape
    side = min(_BLOCK, height, width)
    around = cv2.copyMakeBorder(old, _REACH, _REACH, _REACH, _REACH, cv2.BORDER_REPLICATE)
    matches = []
    for top in range(0, height - side + 1, side):
        for left in range(0, width - side + 1, side):
            block = new[top : top + side, left : left + side]
            if cv2.meanStdDev(block)[1][0, 0] < _UNIFORM:
                continue
            places = around[top : top + side + 2 * _REACH, left : left + side + 2 * _REACH]
            found = cv2.matchTemplate(places, block, cv2.TM_CCOEFF_NORMED)
            best = cv2.minMaxLoc(np.nan_to_num(found, nan=-1.0, posinf=-1.0, neginf=-1.0))[1]
            matches.append(min(1.0, best))
    return sum(matches) / len(matches) if matches else 0.0


def _edges(y: Plane) -> Plane:
    soft = cv2.GaussianBlur(y, (0, 0), 0.8)
    across, down = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    # Squared: whole numbers, the same at each run. Many pixels have the slope of the limit.
    slope = across * across + down * down
    rank = int((1 - _EDGES) * slope.size)
    steep: Plane = (slope >= max(float(np.partition(slope.ravel(), rank)[rank]), _FLAT**2)).astype(np.uint8)
    return steep


def _soft_half(y: Plane) -> Plane:
    half = cv2.resize(y, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    soft: Plane = cv2.GaussianBlur(half, (0, 0), 1.0)
    return soft


def _colours(thumb: Thumb) -> NDArray[np.float32]:
    height, width = thumb.u.shape
    y = cv2.resize(thumb.y, (width, height), interpolation=cv2.INTER_AREA)
    counts = cv2.calcHist([y, thumb.u, thumb.v], [0, 1, 2], None, _BINS, _RANGES)
    return np.asarray(counts / (height * width), np.float32)
