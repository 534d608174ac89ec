"""erase_person: remove all of an erased person: rows, sidecars, photos, answers in Redis; look again; write the receipt.

Works for some seconds at a time and then lets others' jobs go first. What is not ready yet (a sidecar that is being
written again) is waited for with growing pauses. While anything is left the receipt says so and the job goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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


def run(context: StageContext) -> Outcome:
    if context.claimed.part:
        return _sweep_late(context)
    return _Erasure(context).run()


def _names(payload: Mapping[str, Any]) -> list[str]:
    """The ids by which the user, storage and answers know the erased."""
    # A job queued before there were two kinds of ids has one list: they were the same.
    return [str(name) for name in payload.get("external_ids", payload["ids"])]


class _Erasure:
    """One attempt's slice of an erasure."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.claimed = context.claimed
        self.person = context.claimed.subject.id
        self.user = context.claimed.user_id
        self.payload: dict[str, Any] = dict(context.claimed.payload)
        self.ids = [str(name) for name in self.payload["ids"]]
        self.external = set(_names(self.payload))
        self.names = [str(name) for name in self.payload["names"]]
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
        files = self._remove_photos()
        removed_answers = stored_answers.remove(
            self.user, self.external, self.names, self.payload["answers_until"]
        )
        self._note(lambda session, payload: _count(payload, files=files, cached=removed_answers))
        left = self._look_again()
        if any(left.values()):
            self._note(lambda session, payload: erasure.note_receipt(
                session, self.person, {"state": "incomplete", "removed": payload["removed"], "left": left}
            ))  # fmt: skip
            self._pause("something left")

        def write(session: Session) -> None:
            receipt = {"state": "complete", "removed": self.payload["removed"], "left": left}
            erasure.conclude(
                session, self.person, self.claimed.job_id, self.payload, receipt, self.context.runtime.policy,
                UPLOAD_GRACE_S,
            )  # fmt: skip

        return Outcome(result={"left": 0}, write=write)

    # --- what is kept with each step

    def _note(self, work: Any) -> Any:
        """Do ``work(session, payload)`` in a fenced transaction that keeps what it changes in the payload."""

        def fenced(session: Session, job: Job) -> tuple[Any, dict[str, Any]]:
            payload = json.loads(json.dumps(self.payload))
            done = work(session, payload)
            job.payload = payload
            job.progress = _progress(payload)
            return done, payload

        done, self.payload = self.context.write(fenced)
        self.context.report(_progress(self.payload))
        return done

    def _pause(self, reason: str) -> None:
        """Put the job back; longer each time that nothing could be done.

        Raises:
            Deferred: always.
        """

        def note(_: Session, payload: dict[str, Any]) -> None:
            payload["waits_for"] = reason

        self._note(note)
        raise Deferred(FIRST_PAUSE_S)

    def _yield(self) -> None:
        """Let others go first when this slice has lasted long enough.

        Raises:
            Deferred: it has.
        """
        if time.monotonic() - self.began > SLICE_S:
            raise Deferred(progressed=True)

    # --- rows

    def _begin(self, session: Session, payload: dict[str, Any]) -> None:
        # A job queued by an earlier version has removed the rows already, and has a list.
        erasure.note_suspects(session, self.person, self.user, payload.pop("videos", ()))
        payload["total"] = count_tracks(session, self.ids)

    def _remove_rows(self) -> None:
        """Remove every row; when the last one is gone, remember since when nothing can be made of them any more."""
        found = False
        for what, step in erasure.STEPS.items():
            size = BatchSize(erasure.BATCH)

            def remove(
                session: Session,
                payload: dict[str, Any],
                what: str = what,
                step: Any = step,
                size: BatchSize = size,
            ) -> int:
                count = int(step(session, self.person, self.ids, size.rows))
                payload["removed"][what] = int(payload["removed"].get(what, 0)) + count
                if count:
                    payload.pop("rows_gone_at", None)
                return count

            while True:
                with size.timed():
                    more = self._note(remove)
                if not more:
                    break
                found = True
                self._yield()
        if found or "rows_gone_at" not in self.payload:
            # Not with rows locked: Redis may be away.
            answers_until = stored_answers.now()

            def finish(session: Session, payload: dict[str, Any]) -> None:
                payload["rows_gone_at"] = erasure.now(session)
                payload["answers_until"] = answers_until
                payload["noted"] = erasure.count_noted(session, self.person)

            self._note(finish)

    # --- sidecars

    def _remove_sidecars(self) -> None:
        """Look at the sidecars of every scene that named the person, and at those of its video that nobody is shown."""
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
                    transact(
                        lambda session, video=video_id: erasure.note_looked_at(
                            session, self.person, video, None
                        )  # type: ignore[misc]
                    )
                    continue
                self._look_at_video(pool, video_id, name)

    def _look_at_video(self, pool: ThreadPoolExecutor, video_id: str, name: str) -> None:
        storage = self.context.storage
        # Listed first: what becomes known to callers after that was made without the person.
        with reading() as session:
            noted = erasure.noted_scenes(session, self.person, video_id)
        hidden = []
        if erasure.NO_SCENE in noted:
            listed = [found.key for found in storage.list("sidecars", f"sidecars/{self.user}/{name}/")]
            with reading() as session:
                shown = erasure.shown_sidecars(session, video_id)
            hidden = [key for key in listed if key not in shown]
        else:
            with reading() as session:
                shown = erasure.shown_sidecars(session, video_id)
        for chunk in _chunks(hidden):
            doomed = [
                key for key, names in zip(chunk, pool.map(self._names_erased, chunk), strict=True) if names
            ]
            storage.delete_many("sidecars", doomed)
            count = len(doomed)
            self._note(lambda _, payload, count=count: _count(payload, sidecars=count))
            self._yield()
        current = [(key, scene) for key, scene in shown.items() if scene in noted]
        for part in _chunks(current):
            said = list(pool.map(self._names_erased, [key for key, _ in part]))
            wrong = [scene for (_, scene), names in zip(part, said, strict=True) if names]
            right = [scene for (_, scene), names in zip(part, said, strict=True) if not names]

            def note(
                session: Session, payload: dict[str, Any], wrong: Any = wrong, right: Any = right
            ) -> None:
                if wrong:
                    erasure.write_again(session, video_id, wrong)
                erasure.note_looked_at(session, self.person, video_id, right)
                _count(payload, sidecars=len(right))
                payload["noted_done"] = int(payload.get("noted_done", 0)) + len(right)

            self._note(note)
            self._yield()
        seen = {scene for _, scene in current}
        rest = [scene for scene in noted if scene not in seen]
        for part in _chunks(rest):
            transact(
                lambda session, part=part: erasure.note_looked_at(session, self.person, video_id, part)  # type: ignore[misc]
            )

    def _names_erased(self, key: str) -> bool:
        """Whether a sidecar names one of the erased, by its fields."""
        try:
            document = json.loads(self.context.storage.get_bytes("sidecars", key))
        except (ObjectMissing, ValueError):
            return False
        people = document.get("people", ()) if isinstance(document, dict) else ()
        return any(isinstance(who, dict) and who.get("person_id") in self.external for who in people)

    # --- photos

    def _remove_photos(self) -> int:
        return _remove_photos(self.context, self.payload)

    def _look_again(self) -> dict[str, int]:
        """What a sweep of all three stores finds, in the words of the receipt."""
        with reading() as session:
            rows = erasure.rows_left(session, self.user, self.ids, self.names)
            noted = erasure.count_noted(session, self.person)
        return {
            "photo files": sum(1 for _ in _photo_files(self.context, self.payload)),
            "sidecars": noted,
            "cached results": stored_answers.count(
                self.user, self.external, self.names, self.payload["answers_until"]
            ),
            **rows,
        }


def _chunks(items: Sequence[Any]) -> Iterator[list[Any]]:
    for first in range(0, len(items), _CHUNK):
        yield list(items[first : first + _CHUNK])


def _count(payload: dict[str, Any], *, sidecars: int = 0, files: int = 0, cached: int = 0) -> None:
    removed = payload["removed"]
    for what, count in (("sidecars", sidecars), ("photo files", files), ("cached results", cached)):
        removed[what] = int(removed.get(what, 0)) + count


def _progress(payload: Mapping[str, Any]) -> float:
    """Tracks are the first half, sidecars the second."""
    total, done = int(payload.get("total", 0)), int(payload["removed"].get("face tracks", 0))
    if "rows_gone_at" not in payload:
        return min(1.0, done / max(1, total)) / 2
    noted = int(payload.get("noted", 0))
    return 0.5 + min(1.0, int(payload.get("noted_done", 0)) / max(1, noted)) / 2


def _photo_files(context: StageContext, payload: Mapping[str, Any]) -> Iterator[str]:
    """The photos of the erased that are stored, those of somebody who stays left out."""
    keys = {str(key) for key in payload["keys"] if context.storage.exists("uploads", check_key(str(key)))}
    for name in _names(payload):
        prefix = f"faces/{context.claimed.user_id}/{name}/"
        keys.update(found.key for found in context.storage.list("uploads", prefix))
        context.report(_progress(payload) if "removed" in payload else 0.5)
    with reading() as session:
        kept = erasure.kept_photos(session, sorted(keys))
    yield from sorted(keys - kept)


def _remove_photos(context: StageContext, payload: Mapping[str, Any]) -> int:
    keys = list(_photo_files(context, payload))
    context.storage.delete_many("uploads", keys)
    return len(keys)


def _sweep_late(context: StageContext) -> Outcome:
    """No URL is left by which a photo could have been stored: remove what came by one after the erasure."""
    files = _remove_photos(context, context.claimed.payload)

    def write(session: Session) -> None:
        erasure.note_late_sweep(session, context.claimed.subject.id, files)

    return Outcome(result={"removed": files}, write=write)
