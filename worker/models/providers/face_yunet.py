"""Finds the faces of a picture, with five landmarks each, with YuNet in OpenCV on the CPU.

Source: Wu, Peng, Yu, "YuNet: A Tiny Millisecond-level Face Detector" (2023); weights of libfacedetection.train and of
OpenCV's model zoo (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from shared.contracts import Box
from shared.errors import ModelUnavailable
from worker.models.base import Uint8
from worker.models.spec import ModelSpec

#: Left and right as seen in the picture.
LANDMARK_NAMES = (
    "left eye",
    "right eye",
    "nose, tip",
    "left corner of the mouth",
    "right corner of the mouth",
)
#: Long side of the picture the detector sees. It finds faces of 12 px there and those that fill it, in about 6 ms.
MAX_SIDE_PX = 640
#: Chance finds on pictures without a face reached 0.43; true faces, turned by 90 degrees or 14 px wide, began at 0.78.
MIN_SCORE = 0.6
#: Faces of one picture that are embedded. Those of a larger crowd are too small to recognise, and a picture with thousands
#: would take minutes.
MAX_FACES = 200
#: Boxes that overlap more than this are one face, as in OpenCV's own demonstration.
_MAX_OVERLAP = 0.3
_MAX_CANDIDATES = 5000
_LOG_ERRORS_ONLY = 2


@dataclass(frozen=True, slots=True, eq=False)
class Detection:
    #: x, y, width, height in pixels of the picture given, inside it.
    box: Box
    #: 0..1
    score: float
    #: float64 [5, 2], x and y in pixels; may lie outside the picture.
    landmarks: npt.NDArray[np.float64]


class YuNetDetector:
    """One detector; not safe to share between threads.

    Raises: ModelUnavailable when the ONNX file at `path` is no YuNet, or one bound to a single picture size.
    """

    def __init__(self, spec: ModelSpec, path: Path) -> None:
        # OpenCV 5 warns at every load of a target that it ignores.
        before = cv2.utils.logging.setLogLevel(_LOG_ERRORS_ONLY)
        try:
            self._net = cv2.FaceDetectorYN.create(
                str(path), "", (MAX_SIDE_PX, MAX_SIDE_PX), MIN_SCORE, _MAX_OVERLAP, _MAX_CANDIDATES
            )
            for size in ((640, 384), (320, 320)):
                self._net.setInputSize(size)
                self._net.detect(np.zeros((size[1], size[0], 3), np.uint8))
        except (cv2.error, SystemError) as error:
            reason = " ".join(str(error).split())
            raise ModelUnavailable(
                f"Model {spec.name} can't be loaded: expected {path} to be YuNet in ONNX for pictures of any size, found "
                f"what OpenCV refuses ({reason}); put the right file there"
            ) from error
        finally:
            cv2.utils.logging.setLogLevel(before)

    def detect(self, image: Uint8) -> list[Detection]:
        """The faces of one picture, uint8 [H, W, 3] RGB of any size; the surest first, at most `MAX_FACES`."""
        height_px, width_px = image.shape[:2]
        scale = min(1.0, MAX_SIDE_PX / max(height_px, width_px))
        size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
        self._net.setInputSize(size)
        _, rows = self._net.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        if rows is None:
            return []
        own_pixels = np.array([width_px / size[0], height_px / size[1]])
        found = []
        for row in rows.astype(np.float64):
            (left, top), (wide, high) = row[:2] * own_pixels, row[2:4] * own_pixels
            right, bottom = min(width_px, left + wide), min(height_px, top + high)
            left, top = max(0.0, left), max(0.0, top)
            if right > left and bottom > top:
                box = (float(left), float(top), float(right - left), float(bottom - top))
                found.append(Detection(box, float(row[14]), row[4:14].reshape(5, 2) * own_pixels))
        return sorted(found, key=lambda face: (-face.score, face.box))[:MAX_FACES]
