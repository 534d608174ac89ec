"""rewrite_sidecars: write the sidecars of scenes again whose people have changed, and remove those that were replaced."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from uuid import UUID

from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.faces.tracks import PersonInScene
from db.ledger import subjects
from db.people import revisions
from db.people.erasure import current_sidecars
from db.tables import Run
from db.videos import next_revision
from shared.sidecar import to_bytes
from shared.storage import sidecar_key
from worker.stages.context import Outcome, StageContext
from worker.stages.sidecar import make_documents, seen_in

#: Scene -> its old key, its new key, whom the new one names.
Written = dict[UUID, tuple[str | None, str, list[PersonInScene]]]

#: Scenes of one job; a longer list is gone on with by the next.
_SCENES = 256
_BATCH = 64
#: Sidecars stored at once.
_THREADS = 8


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    _remove(context)
    with reading() as session:
        context.video_and_run(session)
        stale = revisions.stale_scenes(session, claimed.video_id, _SCENES)
    written: Written = {}
    if stale:
        revision = transact(lambda session: next_revision(session, claimed.video_id))
        while len(written) < len(stale):
            first = stale[len(written)][1]
            batch = [row for row in stale[len(written) :] if row[1] < first + _BATCH]
            written |= _write(context, batch, revision)
            context.report(len(written) / len(stale))

    def write(session: Session) -> None:
        video = subjects.lock_video(session, claimed.video_id)
        assert video is not None
        unseen = revisions.show(session, written)
        if unseen or len(stale) == _SCENES:
            # Its wake-up message is rung by the reconciler: nothing here knows whether this commits.
            revisions.queue(session, video, context.runtime.policy, unseen)

    return Outcome(result={"sidecars": len(written)}, write=write)


def _write(context: StageContext, batch: list[tuple[UUID, int, str | None]], revision: int) -> Written:
    """Store new documents of some neighbouring scenes."""
    claimed = context.claimed
    with reading() as session:
        video, _ = context.video_and_run(session)
        published = session.get(Run, (video.video_id, video.published_run))
        assert published is not None
        documents = make_documents(session, video, published, batch[0][1], batch[-1][1])
    by_scene = {document.scene_id: document for document in documents}
    puts: dict[str, bytes] = {}
    written: Written = {}
    for scene, _, old in batch:
        key = sidecar_key(claimed.user_id, context.video_name, str(scene), revision)
        document = by_scene.get(str(scene))
        if document is None:
            written[scene] = ("", key, [])
            continue
        context.stored.append(("sidecars", key))
        puts[key] = to_bytes(document)
        written[scene] = (old, key, seen_in(document))
    with ThreadPoolExecutor(_THREADS) as pool:
        # A server's answer takes longer than making a document.
        store = partial(context.storage.put_bytes, "sidecars", content_type="application/json")
        list(pool.map(store, puts.keys(), puts.values()))
    return written


def _remove(context: StageContext) -> None:
    keys = [str(key) for key in context.claimed.payload.get("remove", ())]
    with reading() as session:
        kept = current_sidecars(session, keys)
    context.storage.delete_many("sidecars", [key for key in keys if key not in kept])
