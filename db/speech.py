"""The transcript of a video's published scenes."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.ledger.stage_states import stage_states
from db.tables import Scene
from db.videos import get
from shared import graph
from shared.errors import Conflict


def published_speech(
    session: Session, video_id: str, user_id: str
) -> tuple[str | None, list[list[dict[str, Any]]]]:
    """The main language (None: no speech), and the segments of each scene, in order.

    Rejected segments are among them.

    Raises:
        NotFound: no such video of this user.
        Conflict: nothing of it is published, or its words are not known: that is not silence.
    """
    video = get(session, video_id, user_id)
    if video.published_run is None:
        raise Conflict(
            f"video {video_id} is {video.state} and has no published scenes: wait until it is indexed"
        )
    scenes = session.execute(
        select(Scene.language, Scene.segments)
        .where(Scene.video_id == video.video_id, Scene.user_id == user_id, Scene.live)
        .order_by(Scene.idx)
    ).all()
    languages: Counter[str] = Counter()
    for language, segments in scenes:
        believed = sum(len(segment["text"]) for segment in segments if not segment.get("rejected"))
        if language is not None and believed:
            languages[language] += believed
    if not any(segments for _, segments in scenes):
        heard = stage_states(session, video.video_id, video.published_run).get(graph.ASR.name)
        if heard is not None and not heard.has_outputs:
            reason = f" ({heard.error})" if heard.error else ""
            raise Conflict(
                f"the words of video {video_id} are not known, as asr {heard.state}{reason}: see its status"
            )
    return next(iter(languages.most_common(1)), (None, 0))[0], [segments for _, segments in scenes]
