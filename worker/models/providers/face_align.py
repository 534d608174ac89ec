"""Aligns a face: turns and scales it so that eyes, nose and mouth are where face recognisers expect them."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from worker.models.base import Uint8

Points = npt.NDArray[np.float64]

SIDE_PX = 112
#: float64 [5, 2]: left eye, right eye (as seen), nose, left and right corner of the mouth in a picture of 112 px.
#: Source: Deng et al., "ArcFace" (2019), the code published with it; AdaFace was trained on faces aligned to the same.
TEMPLATE: Points = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
#: cv2.warpAffine's own limit on the sides of a picture.
_MAX_SIDE_PX = 32_766


def align(image: Uint8, landmarks: Points) -> Uint8 | None:
    """Cut one face out of a picture, uint8 [H, W, 3] RGB, by its landmarks: [5, 2] in pixels, in the template's order.

    Returns: uint8 [112, 112, 3] RGB, black where the picture ends; None when the landmarks lie on one spot.
    """
    transform = similarity(landmarks, TEMPLATE)
    if transform is None:
        return None
    if max(image.shape[:2]) > _MAX_SIDE_PX:
        image, transform = _crop(image, transform)
    return np.asarray(cv2.warpAffine(image, transform, (SIDE_PX, SIDE_PX)), np.uint8)


def similarity(source: Points, target: Points) -> Points | None:
    """The rotation, scaling and shift that brings points nearest to others, by least squares and without mirroring.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns" (1991). In the plane, with
    x + iy for a point, turning and scaling is one complex factor, so no singular value decomposition is needed.

    Returns: [2, 3], to be applied to (x, y, 1); None when all points [N, 2] of `source` are one spot, to within 0.001.
    """
    here, there = source @ [1, 1j], target @ [1, 1j]
    here_middle, there_middle = here.mean(), there.mean()
    spread = float((np.abs(here - here_middle) ** 2).sum())
    if not spread > 1e-6:
        return None
    factor = (np.conj(here - here_middle) * (there - there_middle)).sum() / spread
    shift = there_middle - factor * here_middle
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def _crop(image: Uint8, transform: Points) -> tuple[Uint8, Points]:
    """The part of a picture that the transform shows, and the transform from there."""
    corners = np.array([[0, SIDE_PX, 0, SIDE_PX], [0, 0, SIDE_PX, SIDE_PX]], np.float64)
    shown = np.linalg.solve(transform[:, :2], corners - transform[:, 2:])
    sides = [image.shape[1], image.shape[0]]
    low = np.clip(np.floor(shown.min(axis=1)).astype(int) - 2, 0, np.subtract(sides, 1))
    high = np.clip(np.ceil(shown.max(axis=1)).astype(int) + 3, low + 1, np.minimum(sides, low + _MAX_SIDE_PX))
    moved = transform.copy()
    moved[:, 2] += transform[:, :2] @ low
    return image[low[1] : high[1], low[0] : high[0]], moved
