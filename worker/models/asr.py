"""Speech to words: the interface of every speech recogniser. Imports no engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shared.contracts import Segment
from shared.errors import InvalidRequest
from worker.models.base import Float32, Model

Rejection = Literal["no speech", "repetition", "low confidence"]


@dataclass(frozen=True, slots=True)
class Transcript:
    #: ISO 639-1 code of the main language; None: no speech.
    language: str | None
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments if segment.rejected is None)


class Transcriber(Model):
    """Speech to words."""

    def transcribe(
        self,
        audio: Float32,
        *,
        offset_s: float = 0.0,
        on_step: Callable[[float], None] = lambda fraction: None,
    ) -> Transcript:
        """Transcribe a piece of audio; the result does not depend on earlier calls.

        Args:
            audio: float32 [N], mono, 16 kHz, -1..1 (louder is clipped); may be empty.
            offset_s: where the piece starts in its video; added to every time.
            on_step: called with the fraction done, 0..1, increasing, from this thread, between pieces of at most 30 s of audio (10 s
                where the engine holds the GIL within a piece). Its exceptions end the call and pass through.

        Returns: segments in order of time; none for silence.
        Raises: InvalidRequest for another shape or dtype, or values that aren't numbers; ModelFailure.
        """
        if audio.ndim != 1 or audio.dtype != np.float32:
            raise InvalidRequest(f"Audio must be float32 [N], mono; got {audio.dtype} {list(audio.shape)}")
        if not np.isfinite(audio).all():
            raise InvalidRequest("Audio contains values that are not finite numbers; decode it again")
        with self._ready():
            return self._transcribe(audio, offset_s, on_step)

    @abstractmethod
    def _transcribe(
        self, audio: Float32, offset_s: float, on_step: Callable[[float], None]
    ) -> Transcript: ...
