"""Finds and embeds faces with dlib: HOG detector, five landmarks, a 128-d vector (ResNet-29), all on the CPU.

Never uses the 68-point landmark model in the same package: its training data forbids commercial use.
Source: Davis King, dlib.net, "High quality face recognition with deep metric learning" (2017).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import dlib
import numpy as np

from shared.errors import ModelUnavailable
from worker.models.base import Float32, Uint8
from worker.models.face import Face, FaceAnalyser

#: Long side of the image the detector sees. It finds faces of 80 px and more there, in about 50 ms.
MAX_SIDE_PX = 1280
#: Smaller images are enlarged towards this, at most twofold: no detail is gained, but small faces reach 80 px.
MIN_SIDE_PX = 640
#: dlib's own limit is 0. Chance finds on pictures without a face reached 0.17, true faces began at 0.98.
MIN_SCORE = 0.3
CHIP_PX = 150

_LANDMARKS = "models/shape_predictor_5_face_landmarks.dat"
_DESCRIPTOR = "models/dlib_face_recognition_resnet_model_v1.dat"


class DlibFaceAnalyser(FaceAnalyser):
    """dlib's detector and descriptor. Vectors are not normalised: compare them by Euclidean distance."""

    landmark_names = (
        "right eye, outer corner",
        "right eye, inner corner",
        "left eye, outer corner",
        "left eye, inner corner",
        "nose, base",
    )
    # Measured: the same person 0.33 to 0.53, others 0.69 to 1.02.
    same_person = 0.55

    _detector: dlib.fhog_object_detector
    _predictor: dlib.shape_predictor
    _descriptor: dlib.face_recognition_model_v1

    def _load(self) -> None:
        cv2.setNumThreads(self.threads)
        self._detector = dlib.get_frontal_face_detector()
        landmarks, descriptor = self._file(_LANDMARKS), self._file(_DESCRIPTOR)
        try:
            self._predictor = dlib.shape_predictor(str(landmarks))
            self._descriptor = dlib.face_recognition_model_v1(str(descriptor))
        except RuntimeError as error:
            raise ModelUnavailable(
                f"Model {self.spec.name} can't be loaded from {landmarks.parent}: dlib says {error}"
            ) from error

    def _warm_up(self) -> None:
        self._detect(np.zeros((360, 640, 3), np.uint8))
        self._describe([np.zeros((CHIP_PX, CHIP_PX, 3), np.uint8)])

    def _analyse(self, images: Sequence[Uint8]) -> list[list[Face]]:
        shapes: list[list[tuple[dlib.full_object_detection, float]]] = []
        chips: list[Uint8] = []
        for image in images:
            pixels = np.ascontiguousarray(image)
            found = self._detect(pixels)
            shapes.append(found)
            chips += [dlib.get_face_chip(pixels, shape, size=CHIP_PX, padding=0.25) for shape, _ in found]
        vectors = iter(self._describe(chips))
        return [
            [_face(shape, score, next(vectors), image.shape[1], image.shape[0]) for shape, score in found]
            for found, image in zip(shapes, images, strict=True)
        ]

    def _detect(self, image: Uint8) -> list[tuple[dlib.full_object_detection, float]]:
        """Faces with their landmarks in the image's own pixels, the surest first."""
        scale = _scale(max(image.shape[:2]))
        small = image
        if scale != 1.0:
            size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        boxes, scores, _ = self._detector.run(small, 0, MIN_SCORE)
        x_scale, y_scale = image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]
        found = []
        for box, score in zip(boxes, scores, strict=True):
            own = dlib.rectangle(
                round(box.left() * x_scale),
                round(box.top() * y_scale),
                round(box.right() * x_scale),
                round(box.bottom() * y_scale),
            )
            # Landmarks are found on the original: they decide how well the face is aligned.
            found.append((self._predictor(image, own), float(score)))
        return sorted(found, key=lambda item: (-item[1], item[0].rect.left(), item[0].rect.top()))

    def _describe(self, chips: Sequence[Uint8]) -> list[Float32]:
        """A 128-d vector per aligned 150 px face, computed `spec.batch` at a time."""
        vectors: list[Float32] = []
        for first in range(0, len(chips), self.spec.batch):
            batch = list(chips[first : first + self.spec.batch])
            vectors += [
                np.array(vector, np.float32) for vector in self._descriptor.compute_face_descriptor(batch)
            ]
        return vectors


def _scale(side_px: int) -> float:
    if side_px > MAX_SIDE_PX:
        return MAX_SIDE_PX / side_px
    return min(2.0, MIN_SIDE_PX / side_px) if side_px < MIN_SIDE_PX else 1.0


def _face(
    shape: dlib.full_object_detection, score: float, vec: Float32, width_px: int, height_px: int
) -> Face:
    rect = shape.rect
    left, top = max(0, rect.left()), max(0, rect.top())
    right, bottom = min(width_px, rect.right() + 1), min(height_px, rect.bottom() + 1)
    box = (float(left), float(top), float(right - left), float(bottom - top))
    return Face(box, score, tuple((float(point.x), float(point.y)) for point in shape.parts()), vec)
