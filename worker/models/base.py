"""Base class of all models: load, warm up, use under a lock, measure, unload.

The interfaces of the kinds are in `asr`, `text`, `vision`, `face` and `ocr`: public methods check the input, hold
the lock and raise errors by class; a provider implements the private `_load`, `_warm_up` and one method like `_predict`. A
new provider is one class and one line in `cache.PROVIDERS`. Imports no engine.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import psutil

from shared.errors import DeviceOutOfMemory, InvalidRequest, ModelFailure, ScenefleetError
from worker.models import batching
from worker.models.placement import devices
from worker.models.spec import ModelSpec
from worker.models.weights.verify import locate, verify

Float32 = npt.NDArray[np.float32]
Uint8 = npt.NDArray[np.uint8]

SAMPLE_RATE_HZ = 16_000


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """The published state of a model."""

    name: str
    family: str
    kind: str
    provider: str
    revision: str
    #: Device and number format; those of the catalogue while it is not loaded.
    device: str
    dtype: str
    dim: int | None
    loaded: bool = False
    #: Number of loads in this process.
    loads: int = 0
    #: Duration of the last load and the last warm-up; None before.
    load_s: float | None = None
    warm_up_s: float | None = None
    #: Memory of load and warm-up: device memory on a GPU, otherwise growth of the process's resident memory (without an
    #: engine imported earlier).
    memory_bytes: int | None = None
    #: Time of the last use, seconds since 1970.
    last_used: float | None = None
    #: Error of the last failed load or call; empty: none.
    error: str = ""

    #: Fields that a catalogue entry has, too.
    OF_SPEC: ClassVar = {"name", "family", "kind", "provider", "revision", "device", "dtype", "dim"}


class Model(ABC):
    """One model in this process. Not loaded by the constructor.

    Args:
        spec: its entry in the catalogue.
        threads: CPU threads one call may use; None takes every CPU this process may run on. Where the engine keeps one
            setting per process (torch, OpenCV) the model loaded last decides.
        models_dir: folder of downloaded weights.
    """

    def __init__(
        self, spec: ModelSpec, *, threads: int | None = None, models_dir: Path | None = None
    ) -> None:
        self.spec = spec
        usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        self.threads = threads or len(usable)
        self.models_dir = models_dir
        #: Loads it on demand; a model cache sets its own function, which keeps the memory budget.
        self.bring: Callable[[], object] = self.load
        #: Set by worker/models/placement/devices.py before a provider's `_load`.
        self.placement = devices.Placement("cpu", "float32")
        # One call at a time: engines such as PocketSphinx keep their state in the object. Re-entrant, for load on demand.
        self._lock = threading.RLock()
        self.state: ModelState = ModelState(**spec.model_dump(include=ModelState.OF_SPEC))

    @property
    def loaded(self) -> bool:
        return self.state.loaded

    @property
    def dim(self) -> int:
        """Length of its vectors."""
        if self.spec.dim is None:
            raise InvalidRequest(
                f"Model {self.spec.name} makes vectors, but has no dim in models.yaml; add it"
            )
        return self.spec.dim

    def load(self) -> None:
        """Check the weights and load them; a second call does nothing.

        Raises: ModelUnavailable when a file is missing or its checksum is wrong.
        """
        with self._lock:
            if self.loaded:
                return
            # The attributes that outlive `_unload`.
            self._kept = {"_kept", *vars(self)}
            before_bytes, started_s = self._held_bytes(), time.monotonic()
            try:
                verify(self.spec, models_dir=self.models_dir)
                self.placement = devices.place(
                    self.spec.device, self.spec.dtype, model=self.spec.name, memory_mb=self.spec.memory_mb
                )
                with self._engine():
                    self._load()
            except ScenefleetError as error:
                self.state = replace(self.state, error=str(error))
                self._unload()
                raise
            self.state = replace(
                self.state,
                device=self.placement.device,
                dtype=self.placement.dtype,
                loaded=True,
                loads=self.state.loads + 1,
                load_s=time.monotonic() - started_s,
                memory_bytes=max(0, self._held_bytes() - before_bytes),
                error="",
            )

    def unload(self) -> None:
        """Unload the weights. The engine's module stays imported."""
        with self._lock:
            if not self.loaded:
                return
            self._unload()
            self.state = replace(
                self.state,
                device=self.spec.device,
                dtype=self.spec.dtype,
                loaded=False,
                load_s=None,
                warm_up_s=None,
                memory_bytes=None,
            )
            gc.collect()
            devices.free_cache()

    def warm_up(self) -> float:
        """Run `spec.warmup_samples` synthetic items, so that the first real one is not slower. Returns: seconds taken."""
        with self._lock:
            self.load()
            before_bytes, started_s = self._held_bytes(), time.monotonic()
            for _ in range(self.spec.warmup_samples):
                with self._engine():
                    self._warm_up()
            seconds = time.monotonic() - started_s
            memory_bytes = (self.state.memory_bytes or 0) + max(0, self._held_bytes() - before_bytes)
            self.state = replace(self.state, warm_up_s=seconds, memory_bytes=memory_bytes)
            return seconds

    def _file(self, file: str = "") -> Path:
        return locate(self.spec, file, models_dir=self.models_dir)

    def _compute(self, groups: Iterable[list[int]], work: Callable[[list[int]], None]) -> None:
        """Run `work` on each group of indices, halving those that fill the device's memory (see `batching`)."""
        batching.compute(groups, work, model=self.spec.name)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Lock the model for one call, and load it if necessary."""
        while True:
            if not self.loaded:
                # Not under the model's lock: unloading takes the model cache's lock first, then the model's.
                self.bring()
            with self._lock:
                if not self.loaded:
                    continue  # unloaded in between
                self.state = replace(self.state, last_used=time.time())
                yield
                return

    @contextmanager
    def _engine(self) -> Iterator[None]:
        """Raise errors of the engine's code as ModelFailure; scenefleet errors pass through."""
        try:
            yield
        except ScenefleetError as error:
            self.state = replace(self.state, error=str(error))
            raise
        except Exception as error:
            message = f"Model {self.spec.name} failed: {type(error).__name__}: {error}"
            self.state = replace(self.state, error=message)
            failure = DeviceOutOfMemory if devices.is_out_of_memory(error) else ModelFailure
            raise failure(message) from error

    def _held_bytes(self) -> int:
        """The memory that a load increases."""
        on_device = devices.allocated_bytes() if self.placement.device == "cuda" else None
        return int(psutil.Process().memory_info().rss) if on_device is None else on_device

    @abstractmethod
    def _load(self) -> None: ...

    def _unload(self) -> None:
        """Drop every attribute that `_load` has set, and with them the weights; also after a load that failed half-way."""
        for name in vars(self).keys() - self._kept:
            delattr(self, name)

    @abstractmethod
    def _warm_up(self) -> None: ...


def check_images(images: Sequence[Uint8]) -> None:
    """Raise InvalidRequest for the first that is not uint8 [H, W, 3], RGB, at least 1 px a side."""
    for index, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise InvalidRequest(
                f"Image {index} must be uint8 [H, W, 3] RGB; got {image.dtype} {list(image.shape)}"
            )


def check_texts(texts: Sequence[str], what: str) -> list[str]:
    """The texts as UTF-8 can encode them. Raises: InvalidRequest for the first that is not a string."""
    if isinstance(texts, str):
        raise InvalidRequest(f"{what} takes a list of texts; put the single text into a list")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequest(f"Text {index} is {type(text).__name__}, not a string")
    # JSON may carry half a surrogate pair, which UTF-8 can't encode.
    return [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
