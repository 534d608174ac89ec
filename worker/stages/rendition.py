"""rendition: an MP4 of a video that browsers don't play; nothing for one that they do.

It takes a slot of the media nodes only while no other job needs one: it looks every few seconds, and gives way. What it
has done so far is lost then, so on a fleet that is always busy long videos get their rendition late.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy.orm import Session

from db.engine import reading
from db.ledger import video_runs
from db.ledger.claims import others_wait
from db.ledger.subjects import lock_video
from shared import graph
from shared.playback import playable
from worker.media.limits import media_limits
from worker.media.results import RENDITION_VERSION, Rendition
from worker.media.sandbox import make_rendition
from worker.stages.audio import SHARE_OF_LIMIT
from worker.stages.context import Deferred, Outcome, StageContext

#: How often it looks whether other jobs wait; for how long they must have waited: a free slot takes them sooner, seconds.
_LOOK_S = _WAITED_S = 2.0
#: Pause after it has given way, seconds.
_AWAY_S = 30.0
#: Share of the progress bar that the conversion takes; the rest is storing.
_CONVERTING = 0.9


def run(context: StageContext) -> Outcome:
    with reading() as session:
        video = context.video_and_run(session)[0]
        media, before = video.media, video.rendition
    if before is not None and before["version"] == RENDITION_VERSION and _is_there(context, before["key"]):
        return Outcome(result=before)
    # The split has looked at the file: mostly there is nothing to do, and no need to fetch it or to wait for a free slot.
    if media and media.get("flavour") and playable(media).how == "original":
        return _made(context, Rendition(how="original", reason="", path=None, size=None))
    looked_s = time.monotonic()
    _give_way(context)

    def report(fraction: float) -> None:
        nonlocal looked_s
        context.report(fraction * _CONVERTING)
        if time.monotonic() - looked_s >= _LOOK_S:
            looked_s = time.monotonic()
            _give_way(context)

    with context.source() as source:
        found = make_rendition(
            source,
            context.folder,
            limits=media_limits(context.runtime.settings),
            on_progress=report,
            wall_s=SHARE_OF_LIMIT * graph.RENDITION.time_limit_s,
        )
    return _made(context, found)


def _made(context: StageContext, found: Rendition) -> Outcome:
    """Store the file if there is one, and write what was made with the job's end."""
    made: dict[str, Any] = {
        "version": RENDITION_VERSION,
        "how": found.how,
        "reason": found.reason,
        "key": None,
        "size": None if found.size is None else list(found.size),
    }
    if found.path is not None:
        made["key"] = f"{context.prefix('renditions')}{found.path.name}"
        context.storage.put_file("sidecars", made["key"], found.path, "video/mp4")

    def write(session: Session) -> None:
        video = lock_video(session, context.claimed.video_id)
        assert video is not None
        leftovers = context.claimed.attempt > 1 or (video.rendition or made)["key"] != made["key"]
        video.rendition = made
        if leftovers:
            # Its wake-up message is sent by the reconciler: nothing here knows whether this commits.
            video_runs.sweep_again(session, video, context.runtime.policy)

    return Outcome(result=made, write=write)


def _give_way(context: StageContext) -> None:
    """Put the job back if others wait for its slot."""
    with reading() as session:
        if others_wait(session, context.claimed.queue, graph.LATE, _WAITED_S):
            raise Deferred(_AWAY_S)


def _is_there(context: StageContext, key: str | None) -> bool:
    return key is None or context.storage.exists("sidecars", key)
