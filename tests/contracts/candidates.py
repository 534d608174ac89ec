"""The models the contract suites run on: those of the catalogue that are here, and tiny ones in the real formats."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import pytest

from shared.errors import ModelUnavailable
from tests.support.assets import VARIABLE
from worker.models.base import SAMPLE_RATE_HZ, Float32, Model, Uint8
from worker.models.cache import build
from worker.models.catalog import load_catalog
from worker.models.spec import Kind, ModelSpec

SAMPLES = Path(__file__).parents[2] / "samples"
ASSETS = os.environ.get(VARIABLE)
#: A test that reads from ASSETS: the fixture skips it where there are none, and fails it in CI.
needs_assets = pytest.mark.usefixtures("assets")


#: Of every length, script and oddity.
TEXTS = [
    "a cup of coffee",
    "",
    " ",
    "...",
    "x",
    "The quick brown fox jumps over the lazy dog. " * 60,
    "Ein Fuchs springt über den Hund",
    "子犬が走る",
    "🚀🚀🚀",
    "two\nlines\tand a tab\x00",
    "half a \ud83d pair",
    "under_score and hy-phen",
    "ﬁne ½ Ⅷ",
    *("dog " * count for count in (31, 62, 63, 64)),
    *(f"text number {n} " + "and more " * (n % 17) for n in range(30)),
]


@dataclass(frozen=True)
class Candidate:
    """A model to test."""

    name: str
    kind: Kind
    #: Module of tests/checkpoints that makes it; empty for an entry of models.yaml whose weights come in a package.
    checkpoint: str = ""
    #: Fields of its entry that differ from those of the checkpoint.
    changes: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_trained(self) -> bool:
        """Whether what it finds means anything."""
        return not self.checkpoint

    def spec(self, folder: Path) -> ModelSpec:
        if not self.checkpoint:
            return load_catalog().get(self.name)
        module = importlib.import_module(f"tests.checkpoints.{self.checkpoint}")
        spec: ModelSpec = module.build(folder / self.checkpoint)
        return spec.model_copy(update={"name": self.name, **self.changes})


CANDIDATES = (
    *(
        Candidate(spec.name, spec.kind)
        for spec in load_catalog().specs
        if spec.source.startswith("package:") and not spec.is_pulled
    ),
    Candidate("tiny-whisper", "asr", "whisper_scripted"),
    Candidate("tiny-faster-whisper", "asr", "faster_whisper_scripted"),
    Candidate("tiny-bge-m3", "text", "bge_m3"),
    # The import of the library is most of its memory.
    Candidate("tiny-flagembedding", "text", "bge_m3", {"provider": "flagembedding", "memory_mb": 1200}),
    Candidate("tiny-bge-reranker", "rerank", "bge_reranker"),
    Candidate("tiny-siglip", "vision", "siglip"),
    Candidate("tiny-adaface", "face", "adaface"),
)


def candidates(*kinds: Kind, trained: bool | None = None) -> list[Any]:
    """Parameters of a test: one per candidate of these kinds (none: of all), trained or not."""
    return [
        pytest.param(candidate, id=candidate.name)
        for candidate in CANDIDATES
        if candidate.kind in (kinds or (candidate.kind,)) and trained in (None, candidate.is_trained)
    ]


_loaded: dict[str, Model] = {}


def load_candidate(name: str, folders: pytest.TempPathFactory) -> Any:
    """The candidate, loaded once in this process: a test that changes a model builds its own."""
    if name not in _loaded:
        (candidate,) = (candidate for candidate in CANDIDATES if candidate.name == name)
        _loaded[name] = build(candidate.spec(folders.mktemp("model")))
        _loaded[name].load()
    return _loaded[name]


def fixture_of(*kinds: Kind, trained: bool | None = None) -> Any:
    """A fixture: each candidate of these kinds, loaded."""

    @pytest.fixture(scope="module", params=candidates(*kinds, trained=trained))
    def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
        return cast(Model, load_candidate(request.param.name, tmp_path_factory))

    return model


def refusal(spec: ModelSpec) -> str:
    """The sentence with which a model refuses its files or options."""
    model = build(spec)
    with pytest.raises(ModelUnavailable) as refused:
        model.load()
    said = str(refused.value)
    assert not model.loaded and model.state.error == said and spec.name in said and "\n" not in said
    return said


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
