"""What every model is to the rest of the fleet: one interface per family, the engine hidden behind it.

Public methods check the input, hold the lock and name failures; a provider implements the private `_load`, `_unload`,
`_warm_up` and one `_predict`-like method. A new provider is one class and one line in `shelf.PROVIDERS`.
Imports no engine.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import psutil

from shared.errors import InvalidRequest, ModelFailure, ScenefleetError
from worker.models.catalog import ModelSpec
from worker.models.weights import locate, verify

Float32 = npt.NDArray[np.float32]
Uint8 = npt.NDArray[np.uint8]

SAMPLE_RATE_HZ = 16_000


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """What a node publishes about one of its models."""

    name: str
    family: str
    provider: str
    revision: str
    device: str
    dtype: str
    dim: int | None
    loaded: bool
    #: Time the last load and the last warm-up took; None before.
    load_s: float | None
    warm_up_s: float | None
    #: Growth of the process's resident memory over the load and warm-up; an engine imported earlier is not in it.
    memory_bytes: int | None


class Model(ABC):
    """One model in this process. Not loaded by the constructor.

    Args:
        spec: its entry in the catalogue.
        threads: CPU threads one call may use; None takes every CPU this process may run on. Where the engine keeps one
            setting per process (torch, OpenCV) the model loaded last decides.
        models_dir: folder of downloaded weights, for sources that lie there.
    """

    def __init__(
        self, spec: ModelSpec, *, threads: int | None = None, models_dir: Path | None = None
    ) -> None:
        if threads is not None and threads < 1:
            raise InvalidRequest(f"Model {spec.name} can't use {threads} threads; give 1 or more.")
        self.spec = spec
        self.threads = threads if threads is not None else _usable_cpus()
        self.models_dir = models_dir
        # One call at a time: engines such as PocketSphinx keep their state in the object. Re-entrant, for load on demand.
        self._lock = threading.RLock()
        self._loaded = False
        self._load_s: float | None = None
        self._warm_up_s: float | None = None
        self._memory_bytes: int | None = None

    @property
    def loaded(self) -> bool:
        return self._loaded

    def load(self) -> None:
        """Check the weights and load them; a second call does nothing.

        Raises: ModelUnavailable when a file is missing or is not the one the catalogue means.
        """
        with self._lock:
            if self._loaded:
                return
            before_bytes, started_s = _resident_bytes(), time.monotonic()
            verify(self.spec, models_dir=self.models_dir)
            with self._engine():
                self._load()
            self._loaded = True
            self._load_s = time.monotonic() - started_s
            self._memory_bytes = max(0, _resident_bytes() - before_bytes)

    def unload(self) -> None:
        """Let go of the weights. The engine's own module stays imported."""
        with self._lock:
            if not self._loaded:
                return
            self._unload()
            self._loaded = False
            self._load_s = self._warm_up_s = self._memory_bytes = None
            gc.collect()

    def warm_up(self) -> float:
        """Run `spec.warmup_samples` made-up items, so that the first real one finds everything in place.

        Returns: the seconds it took.
        """
        with self._lock:
            self.load()
            before_bytes, started_s = _resident_bytes(), time.monotonic()
            for _ in range(self.spec.warmup_samples):
                with self._engine():
                    self._warm_up()
            self._warm_up_s = time.monotonic() - started_s
            self._memory_bytes = (self._memory_bytes or 0) + max(0, _resident_bytes() - before_bytes)
            return self._warm_up_s

    def state(self) -> ModelState:
        spec = self.spec
        return ModelState(
            name=spec.name,
            family=spec.family,
            provider=spec.provider,
            revision=spec.revision,
            device=spec.device,
            dtype=spec.dtype,
            dim=spec.dim,
            loaded=self._loaded,
            load_s=self._load_s,
            warm_up_s=self._warm_up_s,
            memory_bytes=self._memory_bytes,
        )

    def _file(self, file: str = "") -> Path:
        return locate(self.spec, file, models_dir=self.models_dir)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Hold the model for one call, loading it first if nobody has."""
        with self._lock:
            self.load()
            yield

    @contextmanager
    def _engine(self) -> Iterator[None]:
        """Around code of the engine, and only that: what it raises becomes a ModelFailure, our own errors pass."""
        try:
            yield
        except ScenefleetError:
            raise
        except Exception as error:
            raise ModelFailure(f"Model {self.spec.name} failed: {type(error).__name__}: {error}") from error

    @abstractmethod
    def _load(self) -> None: ...

    @abstractmethod
    def _unload(self) -> None: ...

    @abstractmethod
    def _warm_up(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Word:
    start_s: float
    end_s: float
    text: str
    #: 0..1, the engine's own confidence.
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """Words spoken without a long pause; starts with its first word and ends with its last."""

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Transcript:
    language: str
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and floats, ready for JSON."""
        return asdict(self)


def _ignore_step(fraction: float) -> None:
    """Nobody wants to know."""


class Transcriber(Model):
    """Speech to words."""

    def transcribe(
        self, audio: Float32, *, offset_s: float = 0.0, on_step: Callable[[float], None] = _ignore_step
    ) -> Transcript:
        """The words of a piece of audio; the same piece gives the same words, whatever was transcribed before.

        Args:
            audio: float32 [N], mono, 16 kHz, -1..1 (louder is clipped); may be empty.
            offset_s: where the piece starts in its video; added to every time.
            on_step: told the fraction done, 0..1, growing, from this thread, between pieces of at most 10 s of audio
                (an engine may hold the GIL within a piece). What it raises ends the call and passes through.

        Returns: segments in order of time; none for silence.
        Raises: InvalidRequest for another shape or dtype, or values that aren't numbers; ModelFailure.
        """
        if audio.ndim != 1 or audio.dtype != np.float32:
            raise InvalidRequest(f"Audio must be float32 [N], mono; got {audio.dtype} {list(audio.shape)}.")
        if not np.isfinite(audio).all():
            raise InvalidRequest("Audio holds values that are not finite numbers; decode it again.")
        with self._ready():
            return self._transcribe(audio, offset_s, on_step)

    @abstractmethod
    def _transcribe(
        self, audio: Float32, offset_s: float, on_step: Callable[[float], None]
    ) -> Transcript: ...


class TextEmbedder(Model):
    """Text to unit vectors whose dot product is their similarity."""

    @property
    def dim(self) -> int:
        return _dim_of(self.spec)

    def embed(self, texts: Sequence[str]) -> Float32:
        """One vector per text, in the order given.

        Args:
            texts: any number, in any script; cut at the model's length limit; none gives an empty array.

        Returns: float32 [len(texts), dim], each of length 1.
        Raises: InvalidRequest when an item is not a string; ModelFailure.
        """
        if isinstance(texts, str):
            raise InvalidRequest("embed takes a list of texts; put the single text into a list.")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InvalidRequest(f"Text {index} is {type(text).__name__}, not a string.")
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        with self._ready(), self._engine():
            return self._embed(texts)

    @abstractmethod
    def _embed(self, texts: Sequence[str]) -> Float32: ...


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    #: x, y, width, height in pixels of the image given, inside it.
    box: tuple[float, float, float, float]
    #: The detector's own; higher is surer. Comparable only within one model.
    score: float
    #: x, y in pixels, in the order of the analyser's `landmark_names`.
    landmarks: tuple[tuple[float, float], ...]
    #: float32 [dim]; compare by the metric in the catalogue.
    vec: Float32


class FaceAnalyser(Model):
    """Images to faces: where they are and a vector of who it is."""

    #: What each landmark is; left and right as seen in the image.
    landmark_names: ClassVar[tuple[str, ...]]

    @property
    def dim(self) -> int:
        return _dim_of(self.spec)

    def analyse(self, images: Sequence[Uint8]) -> list[list[Face]]:
        """The faces of each image, in the images' order, the surest first.

        Args:
            images: uint8 [H, W, 3] RGB each, any sizes mixed, H and W at least 1.

        Raises: InvalidRequest for another shape or dtype; ModelFailure.
        """
        for index, image in enumerate(images):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
                raise InvalidRequest(
                    f"Image {index} must be uint8 [H, W, 3] RGB; got {image.dtype} {list(image.shape)}."
                )
        if not images:
            return []
        with self._ready(), self._engine():
            return self._analyse(images)

    @abstractmethod
    def _analyse(self, images: Sequence[Uint8]) -> list[list[Face]]: ...


def _dim_of(spec: ModelSpec) -> int:
    if spec.dim is None:
        raise InvalidRequest(f"Model {spec.name} makes vectors, but has no dim in models.yaml; add it.")
    return spec.dim


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
