"""Interface of all models that read on-screen text. Imports no engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from worker.models.base import Model, Uint8, check_images


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text in a picture."""

    #: Never empty; no spaces around it.
    text: str
    #: x, y, width, height in pixels of the image given, inside it; of a slanted line what encloses it.
    box: tuple[float, float, float, float]
    #: The model's confidence in the characters, 0..1; comparable within one model only.
    score: float


class TextReader(Model):
    """Reads the lines of text in images."""

    def read(self, images: Sequence[Uint8]) -> list[list[Line]]:
        """The lines of each image, in the images' order, as one reads them: from the top, then from the left.

        Args:
            images: uint8 [H, W, 3] RGB each, any sizes mixed, H and W at least 1.

        Raises: InvalidRequest for another shape or dtype; ModelFailure.
        """
        check_images(images)
        if not images:
            return []
        with self._ready(), self._engine():
            return [self._read(image) for image in images]

    @abstractmethod
    def _read(self, image: Uint8) -> list[Line]: ...
