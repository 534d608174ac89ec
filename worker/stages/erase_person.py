"""erase_person: remove all of an erased person: rows, sidecars, photos, answers in Redis; look again; write the receipt.

Works for some seconds at a time and then lets others' jobs go first. What is not ready yet (a sidecar that is being
written again) is waited for with growing pauses. While anything is left the receipt says so and the job goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import compress
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.faces.tracks import count_tracks
from db.people import erasure, moves
from db.people.photos import UPLOAD_GRACE_S
from db.tables import Job
from shared.errors import ObjectMissing
from shared.storage import check_key
from worker.search import stored_answers
from worker.stages.batch_size import BatchSize
from worker.stages.context import Deferred, Outcome, StageContext

#: Then others' jobs have their turn, seconds.
SLICE_S = 5.0
#: The first pause before another look at what is not ready, seconds; each further one is longer.
FIRST_PAUSE_S = 1.0
#: Sidecars read at once, and how many are looked at before that is noted.
_THREADS, _CHUNK = 8, 512

T = TypeVar("T")


def run(context: StageContext) -> Outcome:
    if not context.claimed.part:
        return _Erasure(context).run()
    # No URL is left by which a photo could have been stored: remove what came by one after the erasure.
    files = _remove_photos(context, context.claimed.payload)

    def write(session: Session) -> None:
        erasure.note_late_sweep(session, context.claimed.subject.id, files)

    return Outcome(result={"removed": files}, write=write)


class _Erasure:
    """One attempt's slice of an erasure."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.person = context.claimed.subject.id
        self.user = context.claimed.user_id
        self.payload: dict[str, Any] = dict(context.claimed.payload)
        self.ids: list[str] = self.payload["ids"]
        #: The ids by which the user, storage and answers know the erased.
        self.external = set(self.payload["external_ids"])
        self.names: list[str] = self.payload["names"]
        self.began = time.monotonic()

    def run(self) -> Outcome:
        with reading() as session:
            moving = moves.under_way(session, self.user, set(self.ids))
        if moving:
            self._pause("tracks being moved")
        if "total" not in self.payload:
            self._note(self._begin)
        self._remove_rows()
        with reading() as session:
            waiting = erasure.is_waiting(session, self.person, self.user, self.payload["rows_gone_at"])
        if waiting:
            self._pause("sidecars being written again")
        self._remove_sidecars()
        files = _remove_photos(self.context, self.payload)
        answers = stored_answers.remove(self.user, self.external, self.names, self.payload["answers_until"])
        self._note_removed({"sidecars": 0, "photo files": files, "cached results": answers})
        left = self._look_again()
        if any(left.values()):
            receipt = {"state": "incomplete", "removed": self.payload["removed"], "left": left}
            self._note(lambda session, _: erasure.note_receipt(session, self.person, receipt))
            self._pause("something left")

        def write(session: Session) -> None:
            receipt = {"state": "complete", "removed": self.payload["removed"], "left": left}
            job_id, policy = self.context.claimed.job_id, self.context.runtime.policy
            erasure.conclude(session, self.person, job_id, self.payload, receipt, policy, UPLOAD_GRACE_S)

        return Outcome(result={"left": 0}, write=write)

    def _note(self, work: Callable[[Session, dict[str, Any]], T]) -> T:
        """Do ``work(session, payload)`` in a fenced transaction that keeps what it changes in the payload."""

        def fenced(session: Session, job: Job) -> tuple[T, dict[str, Any]]:
            payload = json.loads(json.dumps(self.payload))
            done = work(session, payload)
            job.payload = payload
            job.progress = _progress(payload)
            return done, payload

        done, self.payload = self.context.write(fenced)
        self.context.report(_progress(self.payload))
        return done

    def _note_removed(self, counts: Mapping[str, int]) -> None:
        self._note(lambda _, payload: _count(payload, counts))

    def _pause(self, reason: str) -> None:
        """Put the job back; longer each time that nothing could be done.

        Raises:
            Deferred: always.
        """
        self._note(lambda _, payload: payload.update(waits_for=reason))
        raise Deferred(FIRST_PAUSE_S)

    def _yield(self) -> None:
        """Let others go first when this slice has lasted long enough.

        Raises:
            Deferred: it has.
        """
        if time.monotonic() - self.began > SLICE_S:
            raise Deferred(progressed=True)

    def _begin(self, session: Session, payload: dict[str, Any]) -> None:
        erasure.note_suspects(session, self.person, self.user)
        payload["total"] = count_tracks(session, self.ids)

    def _remove_rows(self) -> None:
        """Remove every row; when the last one is gone, remember since when nothing can be made of them any more."""
        found = False
        for what in erasure.STEPS:
            size = BatchSize(erasure.BATCH)
            while True:
                with size.timed() as rows:
                    more = self._note(partial(self._remove_some, what=what, rows=rows))
                if not more:
                    break
                found = True
                self._yield()
        if found or "rows_gone_at" not in self.payload:
            # Not with rows locked: Redis may be away.
            answers_until = stored_answers.now()
            self._note(
                lambda session, payload: payload.update(
                    rows_gone_at=erasure.now(session),
                    answers_until=answers_until,
                    noted=erasure.count_noted(session, self.person),
                )
            )

    def _remove_some(self, session: Session, payload: dict[str, Any], what: str, rows: int) -> int:
        count = erasure.STEPS[what](session, self.person, self.ids, rows)
        _count(payload, {what: count})
        if count:
            payload.pop("rows_gone_at", None)
        return count

    def _remove_sidecars(self) -> None:
        """Look at the sidecars of every scene that named the person, and at those of its video that no search shows."""
        video_id = ""
        with ThreadPoolExecutor(_THREADS) as pool:
            while True:
                with reading() as session:
                    found = erasure.next_video(session, self.person, video_id)
                if found is None:
                    return
                video_id, name, deleted = found
                if deleted:
                    # All of it is removed by its own erasure.
                    self._look_past(video_id, None)
                else:
                    self._look_at_video(pool, video_id, name)

    def _look_past(self, video_id: str, scenes: Sequence[UUID] | None) -> None:
        transact(lambda session: erasure.note_looked_at(session, self.person, video_id, scenes))

    def _look_at_video(self, pool: ThreadPoolExecutor, video_id: str, name: str) -> None:
        storage = self.context.storage
        with reading() as session:
            noted = erasure.noted_scenes(session, self.person, video_id)
        # Listed first: what becomes known to callers after that was made without the person.
        listed = []
        if erasure.NO_SCENE in noted:
            listed = [found.key for found in storage.list("sidecars", f"sidecars/{self.user}/{name}/")]
        with reading() as session:
            shown = erasure.shown_sidecars(session, video_id)
        for chunk in _chunks([key for key in listed if key not in shown]):
            doomed = list(compress(chunk, pool.map(self._names_erased, chunk)))
            storage.delete_many("sidecars", doomed)
            self._note_removed({"sidecars": len(doomed)})
            self._yield()
        current = {scene: key for key, scene in shown.items() if scene in noted}
        for part in _chunks(list(current)):
            wrong = list(compress(part, pool.map(lambda scene: self._names_erased(current[scene]), part)))
            right = [scene for scene in part if scene not in wrong]
            self._note(partial(self._note_read, video_id=video_id, wrong=wrong, right=right))
            self._yield()
        for part in _chunks([scene for scene in noted if scene not in current]):
            self._look_past(video_id, part)

    def _note_read(
        self, session: Session, payload: dict[str, Any], video_id: str, wrong: list[UUID], right: list[UUID]
    ) -> None:
        if wrong:
            erasure.write_again(session, video_id, wrong)
        erasure.note_looked_at(session, self.person, video_id, right)
        _count(payload, {"sidecars": len(right)})
        payload["noted_done"] = int(payload.get("noted_done", 0)) + len(right)

    def _names_erased(self, key: str) -> bool:
        """Whether a sidecar names one of the erased, by its fields."""
        try:
            document = json.loads(self.context.storage.get_bytes("sidecars", key))
        except (ObjectMissing, ValueError):
            return False
        people = document.get("people", ()) if isinstance(document, dict) else ()
        return any(isinstance(who, dict) and who.get("person_id") in self.external for who in people)

    def _look_again(self) -> dict[str, int]:
        """What a sweep of all three stores finds, in the words of the receipt."""
        until = self.payload["answers_until"]
        with reading() as session:
            rows = erasure.rows_left(session, self.user, self.ids, self.names)
            noted = erasure.count_noted(session, self.person)
        return {
            "photo files": len(_photo_files(self.context, self.payload)),
            "sidecars": noted,
            "cached results": stored_answers.count(self.user, self.external, self.names, until),
            **rows,
        }


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), _CHUNK):
        yield items[first : first + _CHUNK]


def _count(payload: dict[str, Any], counts: Mapping[str, int]) -> None:
    """Add to what the receipt says was removed."""
    removed = payload["removed"]
    for what, count in counts.items():
        removed[what] = int(removed.get(what, 0)) + count


def _progress(payload: Mapping[str, Any]) -> float:
    """Tracks are the first half, sidecars the second."""
    total, done = int(payload.get("total", 0)), int(payload["removed"].get("face tracks", 0))
    if "rows_gone_at" not in payload:
        return min(1.0, done / max(1, total)) / 2
    noted = int(payload.get("noted", 0))
    return 0.5 + min(1.0, int(payload.get("noted_done", 0)) / max(1, noted)) / 2


def _photo_files(context: StageContext, payload: Mapping[str, Any]) -> list[str]:
    """The photos of the erased that are stored, those of somebody who stays left out."""
    keys = {str(key) for key in payload["keys"] if context.storage.exists("uploads", check_key(str(key)))}
    for name in payload["external_ids"]:
        prefix = f"faces/{context.claimed.user_id}/{name}/"
        keys.update(found.key for found in context.storage.list("uploads", prefix))
        context.report(_progress(payload) if "removed" in payload else 0.5)
    with reading() as session:
        kept = erasure.kept_photos(session, sorted(keys))
    return sorted(keys - kept)


def _remove_photos(context: StageContext, payload: Mapping[str, Any]) -> int:
    keys = _photo_files(context, payload)
    context.storage.delete_many("uploads", keys)
    return len(keys)
