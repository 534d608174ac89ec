"""Sounds to transcribe: stored while they arrive, heard in stretches that end in silence, and removed.

What a process that dies leaves behind is removed by the sweep of ``api.uploads``: an object under ``queries/`` of the
tmp bucket marks every sound, whole or not.
"""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool as in_thread

from api.asking import Asking
from api.dialects import InvalidParameter
from api.files import OCTETS
from api.problems import BodyTooLarge
from api.uploads import BATCH_BYTES, Uploads
from shared import routing
from shared.contracts import Segment, TranscribeAudio, TranscribedAudio
from shared.errors import BadMedia, LimitExceeded, Outage, StorageUnavailable
from shared.storage import Storage

log = logging.getLogger(__name__)

#: As OpenAI's.
MAX_SOUND_BYTES = 25 * 2**20
#: Longest sound of one request, seconds.
MAX_SOUND_S = 1500.0
#: Longest stretch that the fleet hears at once, and the shortest one that is cut for the next, seconds.
STRETCH_S, MIN_STRETCH_S = 30.0, 15.0
#: What of a whole stretch may be missing by rounding, and what of it the next one hears again at least, seconds.
ROUNDING_S = 0.1
#: Longest wait for one stretch: on a CPU a large model is slower than the speaker.
WAIT_S = float(routing.REQUEST_LIMIT_S)


@dataclass(frozen=True)
class Heard:
    """What was said in a sound."""

    #: ISO 639-1 code; None: no speech.
    language: str | None
    segments: tuple[Segment, ...]
    duration_s: float

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments)


class Sound:
    """The file of one request, which arrives piece by piece."""

    def __init__(self, storage: Storage, user_id: str) -> None:
        name = f"{user_id}/queries/{uuid.uuid4().hex}.sound"
        self._storage, self._mark = storage, f"queries/{name}"
        self.key = f"uploads/{name}"
        self._opened = ExitStack()
        self._waiting = bytearray()
        self.size_bytes = 0

    def _begin(self) -> None:
        self._storage.put_bytes("tmp", self._mark, b"", OCTETS)
        # Its size is known when it is there.
        self._incoming = self._storage.begin("uploads", self.key, 1, OCTETS, folder=f"{self._mark}.parts/")
        self._appender = self._opened.enter_context(self._storage.append(self._incoming, fence=1))

    async def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            BodyTooLarge: there are more than ``MAX_SOUND_BYTES``.
        """
        self.size_bytes += len(data)
        if self.size_bytes > MAX_SOUND_BYTES:
            raise BodyTooLarge(f"the sound has more than {MAX_SOUND_BYTES} bytes: send a shorter one")
        self._waiting += data
        if len(self._waiting) >= BATCH_BYTES:
            await self._store()

    async def _store(self) -> None:
        data, self._waiting = bytes(self._waiting), bytearray()
        await in_thread(self._appender.write, data)

    async def finish(self) -> None:
        """Let the object appear.

        Raises:
            InvalidParameter: it is empty.
        """
        if not self.size_bytes:
            raise InvalidParameter("file is empty: send a sound", "file")
        await self._store()

        def complete() -> None:
            self._appender.flush()
            self._opened.close()
            self._storage.complete(dataclasses.replace(self._incoming, size_bytes=self.size_bytes))

        await in_thread(complete)

    def _discard(self) -> None:
        self._opened.close()
        self._storage.abort(self._incoming)
        self._storage.delete_prefix("tmp", f"{self._mark}.parts/")


@asynccontextmanager
async def receiving(storage: Storage, uploads: Uploads, user_id: str) -> AsyncIterator[Sound]:
    """A new sound of a user, which is removed when the block ends."""
    sound = Sound(storage, user_id)
    await in_thread(sound._begin)
    try:
        yield sound
    finally:
        try:
            await in_thread(sound._discard)
        except StorageUnavailable as error:
            log.warning("parts of a sound are left to the sweep: %s", type(error).__name__)
        await uploads.forget_query(sound.key)


async def transcribe(asking: Asking, user_id: str, sound: Sound) -> Heard:
    """Hear a stored sound to its end.

    Raises:
        BadMedia: it is no sound, or damaged.
        LimitExceeded: it is longer than ``MAX_SOUND_S``.
    """
    asking = asking.waiting(WAIT_S)
    start_s, language, segments = 0.0, None, list[Segment]()
    while True:
        kwargs = {
            "user_id": user_id,
            "storage_key": sound.key,
            "start_s": start_s,
            "end_s": start_s + STRETCH_S,
        }
        try:
            found = await asking.ask(routing.ASR_TRANSCRIBE, TranscribeAudio, kwargs, TranscribedAudio)
        except BadMedia as error:
            # The name of the object says nothing to the caller.
            raise type(error)(str(error).removeprefix(f"{sound.key}: ")) from None
        if found.duration_s is None:
            raise Outage("the asr nodes are older than this API: update them, then ask again")
        language = language or found.language
        heard = [segment for segment in found.segments if segment.rejected is None]
        if found.duration_s < STRETCH_S - ROUNDING_S:
            return Heard(language, (*segments, *heard), start_s + found.duration_s)
        end_s = cut_at(heard, start_s, start_s + found.duration_s)
        segments += [segment for segment in heard if segment.start_s < end_s]
        start_s = end_s
        if start_s >= MAX_SOUND_S:
            raise LimitExceeded(f"the sound is longer than {MAX_SOUND_S:g} s: send it in parts")


def cut_at(heard: list[Segment], start_s: float, end_s: float) -> float:
    """Where the next stretch begins: in the longest silence of the later part of this one, before its end.

    Segments are what is said without a long pause. What begins after the cut is heard again, from its beginning.
    """
    last_s = end_s - ROUNDING_S
    spoken_until = [start_s, *(segment.end_s for segment in heard)]
    spoken_from = [*(segment.start_s for segment in heard), end_s]
    silences = [
        (after - before, (before + after) / 2)
        for before, after in zip(spoken_until, spoken_from, strict=True)
        if (before + after) / 2 >= start_s + MIN_STRETCH_S
    ]
    if not heard or not silences:
        return last_s
    return min(max(silences)[1], last_s)
