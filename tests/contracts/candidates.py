"""The models the contract suites run on: those of the catalogue that are here, and tiny ones in the real formats."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import pytest

from tests.support.assets import VARIABLE
from worker.models.base import SAMPLE_RATE_HZ, Float32, Model, Uint8
from worker.models.cache import build
from worker.models.catalog import load_catalog
from worker.models.spec import Kind, ModelSpec

SAMPLES = Path(__file__).parents[2] / "samples"
ASSETS = os.environ.get(VARIABLE)
#: A test that reads from ASSETS: the fixture skips it where there are none, and fails it in CI.
needs_assets = pytest.mark.usefixtures("assets")


#: A test of what is no picture to a model: not uint8 [H, W, 3].
no_picture = pytest.mark.parametrize(
    "image",
    [
        np.zeros((90, 90), np.uint8),
        np.zeros((90, 90, 4), np.uint8),
        np.zeros((90, 90, 3), np.float32),
        np.zeros((0, 90, 3), np.uint8),
    ],
    ids=["grey 2-D", "RGBA", "float", "empty"],
)
SHAPES = [(1, 1, 3), (1, 3000, 3), (3000, 1, 3), (20, 20, 3), (360, 640, 3), (4320, 7680, 3)]
#: A test of pictures of one colour: [H, W, 3] of any size. Of the largest, one will do.
one_colour = pytest.mark.parametrize(
    ("shape", "grey"),
    [(s, grey) for s in SHAPES for grey in (0, 128, 255) if grey == 128 or s != SHAPES[-1]],
    ids=str,
)


@dataclass(frozen=True)
class Candidate:
    """A model to test."""

    name: str
    kind: Kind
    #: Module of tests/checkpoints that makes it; empty for an entry of models.yaml whose weights come in a package.
    checkpoint: str = ""

    @property
    def is_trained(self) -> bool:
        """Whether what it finds means anything."""
        return not self.checkpoint

    def spec(self, folder: Path) -> ModelSpec:
        if not self.checkpoint:
            return load_catalog().get(self.name)
        module = importlib.import_module(f"tests.checkpoints.{self.checkpoint}")
        return cast(ModelSpec, module.build(folder / self.checkpoint))


CANDIDATES = (
    *(
        Candidate(spec.name, spec.kind)
        for spec in load_catalog().specs
        if spec.source.startswith("package:") and not spec.is_pulled
    ),
    Candidate("tiny-whisper", "asr", "whisper_scripted"),
    Candidate("tiny-faster-whisper", "asr", "faster_whisper_scripted"),
    Candidate("tiny-bge-m3", "text", "bge_m3"),
    Candidate("tiny-bge-m3-flagembedding", "text", "bge_m3_flagembedding"),
    Candidate("tiny-bge-reranker", "rerank", "bge_reranker"),
    Candidate("tiny-siglip", "vision", "siglip"),
    Candidate("tiny-adaface", "face", "adaface"),
)


def candidates(kind: Kind | None = None, *, trained: bool | None = None) -> list[Any]:
    """Parameters of a test: one per candidate of a kind, trained or not."""
    return [
        pytest.param(candidate, id=candidate.name)
        for candidate in CANDIDATES
        if kind in (None, candidate.kind) and trained in (None, candidate.is_trained)
    ]


def loaded(candidate: Candidate, folders: pytest.TempPathFactory) -> Iterator[Model]:
    """The candidate, loaded; for a fixture."""
    model = build(candidate.spec(folders.mktemp("model")))
    model.load()
    yield model
    model.unload()


def read_audio(path: Path, end_s: float = 1e9) -> Float32:
    """float32 [N], mono, 16 kHz."""
    resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE_HZ)
    with av.open(str(path)) as container:
        frames = [
            out.to_ndarray()[0] for frame in container.decode(audio=0) for out in resampler.resample(frame)
        ]
    return np.concatenate(frames)[: int(min(end_s, 1e6) * SAMPLE_RATE_HZ)].astype(np.float32)


def sample_words() -> list[str]:
    """The words of each scene of the sample."""
    document = json.loads((SAMPLES / "truth.json").read_text())
    return [" ".join(scene["words"]) for scene in document["scenes"]]


def sample_picture(at_s: float) -> Uint8:
    """uint8 [540, 960, 3] RGB, a frame of the sample."""
    return _decode_sample(at_s).copy()


@cache
def _decode_sample(at_s: float) -> Uint8:
    with av.open(str(SAMPLES / "demo.mp4")) as container:
        for frame in container.decode(video=0):
            if frame.time is not None and frame.time >= at_s:
                return cast(Uint8, frame.to_ndarray(format="rgb24"))
    raise AssertionError(f"the sample ends before {at_s} s")


def sample_pictures(every_s: float) -> Iterator[Uint8]:
    """Frames of the sample, so many seconds apart; uint8 [540, 960, 3] RGB each."""
    due_s = 0.0
    with av.open(str(SAMPLES / "demo.mp4")) as container:
        for frame in container.decode(video=0):
            if frame.time is not None and frame.time >= due_s:
                due_s += every_s
                yield cast(Uint8, frame.to_ndarray(format="rgb24"))


def photograph(name: str) -> Uint8:
    """uint8 [H, W, 3] RGB, one of the photographs among the test assets."""
    image = cv2.imread(str(Path(cast(str, ASSETS)) / name))
    assert image is not None
    return cast(Uint8, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
