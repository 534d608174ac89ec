"""Interface of all face models. Imports no engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from worker.models.base import Float32, Model, Uint8, check_images


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    #: x, y, width, height in pixels of the image given, inside it.
    box: tuple[float, float, float, float]
    #: The detector's confidence; comparable within one model only.
    score: float
    #: x, y in pixels, in the order of the analyser's `landmark_names`.
    landmarks: tuple[tuple[float, float], ...]
    #: float32 [dim]; compare by the metric in the catalogue.
    vec: Float32
    #: Quality, above 0, higher is better; None: the model does not measure it.
    quality: float | None = None


class FaceAnalyser(Model):
    """Finds faces in images and embeds them."""

    #: Names of the landmarks; left and right as seen in the image.
    landmark_names: ClassVar[tuple[str, ...]]
    #: Maximum distance of two faces of one person: 1 - cosine or Euclidean, by the catalogue's metric.
    same_person: ClassVar[float]

    def analyse(self, images: Sequence[Uint8]) -> list[list[Face]]:
        """The faces of each image, in the images' order, the most confident first.

        Args:
            images: uint8 [H, W, 3] RGB each, any sizes mixed, H and W at least 1.

        Raises: InvalidRequest for another shape or dtype; ModelFailure.
        """
        check_images(images)
        if not images:
            return []
        with self._ready(), self._engine():
            return self._analyse(images)

    @abstractmethod
    def _analyse(self, images: Sequence[Uint8]) -> list[list[Face]]: ...
