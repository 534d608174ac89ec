"""Interface of all vision models. Imports no engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from shared.errors import ModelUnavailable
from worker.models.base import Float32, Model, Uint8, check_images, check_texts

#: SigLIP learned that of 32,000 pairs one is true: labels that don't hold get 0.001 and less, those that do 0.05 to 1,
#: and what fills the picture comes out on top (transformers' documentation shows 0.2 and 0.3 for its two cats).
TAG_THRESHOLD = 0.05


class VisionEmbedder(Model):
    """Embeds images and short texts in one space: the vector of a text is near those of images that it describes."""

    @property
    def tag_threshold(self) -> float:
        """Minimum probability of a tag, 0..1: the catalogue's option. Raises: ModelUnavailable for a wrong one."""
        value = self.spec.options.get("tag_threshold", TAG_THRESHOLD)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise ModelUnavailable(
                f"Model {self.spec.name} has the option tag_threshold={value!r} in models.yaml; use a number from 0 to 1"
            )
        return float(value)

    def embed_images(self, images: Sequence[Uint8]) -> Float32:
        """Embed images: one vector per image, in their order.

        Args:
            images: uint8 [H, W, 3] RGB each, any sizes mixed, H and W at least 1.

        Returns: float32 [len(images), dim], each of length 1.
        Raises: InvalidRequest for another shape or dtype; ModelFailure.
        """
        check_images(images)
        if not images:
            return np.zeros((0, self.dim), np.float32)
        with self._ready(), self._engine():
            return self._embed_images(images)

    def embed_texts(self, texts: Sequence[str]) -> Float32:
        """Embed texts, to search images by words: one vector per text, which is cut at the tower's length limit.

        Returns: float32 [len(texts), dim], each of length 1.
        Raises: InvalidRequest when an item is not a string; ModelFailure.
        """
        texts = check_texts(texts, "embed_texts")
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        with self._ready(), self._engine():
            return self._embed_texts(texts)

    def match(self, images: Float32, texts: Float32) -> Float32:
        """Probability that each text describes each image, by the model's calibration.

        Args:
            images: float32 [N, dim] from `embed_images`; texts: float32 [M, dim] from `embed_texts`.

        Returns: float32 [N, M], 0..1; rows don't add up to 1, several texts may be true.
        """
        with self._ready(), self._engine():
            return self._match(images, texts)

    @abstractmethod
    def _embed_images(self, images: Sequence[Uint8]) -> Float32: ...

    @abstractmethod
    def _embed_texts(self, texts: Sequence[str]) -> Float32: ...

    @abstractmethod
    def _match(self, images: Float32, texts: Float32) -> Float32: ...
