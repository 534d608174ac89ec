"""Made-up vectors of scenes, such as models would give: what ``bench.search`` searches.

``clustered``: 300 clusters of unequal size; a video keeps to three of them, and what is seen of a scene comes from one
of five clusters that go with what is said. Within a cluster scenes vary along 32 directions, less and less, and a
little in all others, so that the intrinsic dimension is about that of real embeddings (15 to 25).

``near random``: the same clusters, but with noise in all directions alike. Within a cluster everything is about equally
far from everything (intrinsic dimension over 100), which no index can tell apart; no real model gives such vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Family = Literal["text", "vision"]
Kind = Literal["clustered", "near random"]
Floats = npt.NDArray[np.float32]

DIMS: dict[Family, int] = {"text": 1024, "vision": 1152}
SCENES_PER_VIDEO = 100
_CLUSTERS, _OF_VIDEO, _RELATED = 300, 3, 5
#: Directions a cluster varies along, the length of that, and of what is added in all directions.
_DIRECTIONS, _WITHIN, _AROUND = 32, 0.7, 0.2
#: Share of what varies that a scene's words and pictures have in common.
_COMMON = 0.3
#: Length of what a keyframe differs from its scene by.
_BETWEEN_KEYFRAMES = 0.3


def units(vectors: npt.NDArray[Any]) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


class Source:
    """Scenes of one kind: always of the same clusters, the same ones for the same seed."""

    def __init__(self, kind: Kind, seed: int, dims: Mapping[Family, int] = DIMS) -> None:
        self.kind, self._dims = kind, dims
        self._rng = np.random.default_rng(seed)
        rng = np.random.default_rng(0)
        self._centres = {family: units(rng.normal(size=(_CLUSTERS, dim))) for family, dim in dims.items()}
        self._directions = {
            family: rng.standard_normal((_CLUSTERS, _DIRECTIONS, dim), np.float32) / np.float32(dim**0.5)
            for family, dim in dims.items()
        }
        lengths = np.arange(1, _DIRECTIONS + 1) ** -0.5
        self._lengths = np.float32(_WITHIN) * units(lengths)
        sizes = 1 / np.arange(20, 20 + _CLUSTERS)
        self._shares = sizes / sizes.sum()

    def clusters(self, count: int) -> npt.NDArray[np.int64]:
        """Some clusters, all different."""
        return self._rng.choice(_CLUSTERS, size=count, replace=False, p=self._shares)

    def draw(self, count: int, among: npt.NDArray[np.int64] | None = None) -> dict[Family, Floats]:
        """Unit vectors [count, dim] of scenes that follow each other, from new videos; ``among``: of these clusters."""
        rng = self._rng
        shares = self._shares if among is None else self._shares[among] / self._shares[among].sum()
        videos = rng.choice(
            _CLUSTERS if among is None else among, size=(count // SCENES_PER_VIDEO + 1, _OF_VIDEO), p=shares
        )
        said = videos[np.arange(count) // SCENES_PER_VIDEO, rng.integers(_OF_VIDEO, size=count)]
        seen = (said * _RELATED + rng.integers(_RELATED, size=count)) % _CLUSTERS
        common = rng.standard_normal((count, _DIRECTIONS), np.float32)
        clusters = {"text": said, "vision": seen}
        return {family: self._vectors(family, clusters[family], common) for family in self._dims}

    def _vectors(self, family: Family, clusters: npt.NDArray[np.int64], common: Floats) -> Floats:
        rng, count = self._rng, len(clusters)
        centres = self._centres[family][clusters]
        noise = units(rng.standard_normal((count, self._dims[family]), np.float32))
        if self.kind == "near random":
            return units(centres + _WITHIN * noise)
        own = rng.standard_normal((count, _DIRECTIONS), np.float32)
        along = (_COMMON**0.5 * common + (1 - _COMMON) ** 0.5 * own) * self._lengths
        within = np.stack(
            [row @ self._directions[family][cluster] for row, cluster in zip(along, clusters, strict=True)]
        )
        return units(centres + within + _AROUND * noise)


def keyframes(vectors: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Unit vectors [scenes, count, dim] of keyframes of scenes: near the given one of their scene [scenes, dim]."""
    noise = units(rng.standard_normal((len(vectors), count, vectors.shape[1]), np.float32))
    return units(vectors[:, None] + _BETWEEN_KEYFRAMES * noise)


def intrinsic_dimension(similarities: Sequence[Sequence[float]]) -> float:
    """Estimated from the cosine similarities of points to their nearest neighbours (Levina and Bickel, k of them)."""
    distances = np.sqrt(np.maximum(2 - 2 * np.sort(np.asarray(similarities), axis=1)[:, ::-1], 1e-9))
    return float(1 / np.mean(np.log(distances[:, -1:] / distances[:, :-1])))
