"""Finds sidecars with outdated people, and queues the jobs that rewrite them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from uuid import UUID

from sqlalchemy import Select, func, select, text, update
from sqlalchemy.orm import Session

from db.expressions import seconds_from_now
from db.faces.tracks import PersonInScene, people_in
from db.ledger import jobs
from db.ledger.jobs import WakeUp, make_job, run_jobs
from db.ledger.policy import RunPolicy
from db.tables import LIVE, Job, JobState, Scene, Video
from shared import graph

#: Delay before a video whose rewrite failed for good is tried again, seconds.
_PATIENCE_S = 600.0


#: Videos with an outdated scene that one look examines, and where this process's next look begins.
_PAGE_SIZE = 200
_page_after = ""
# The videos in ix_scenes_people_changed, each found in one step.
_PAGE = text(
    """
    WITH RECURSIVE found AS (
        (
            SELECT video_id, 1 AS place FROM scenes WHERE people_changed AND video_id > :after
            ORDER BY video_id LIMIT 1
        )
        UNION ALL
        SELECT next.video_id, found.place + 1 FROM found CROSS JOIN LATERAL (
            SELECT video_id FROM scenes WHERE people_changed AND video_id > found.video_id ORDER BY video_id LIMIT 1
        ) next
        WHERE found.place < :page
    )
    SELECT video_id FROM found ORDER BY place
    """
)


def stale_videos(session: Session, limit: int = 100) -> list[str]:
    """Published videos with an outdated sidecar and no job that rewrites it.

    Successive calls of a process look at one page of videos each, in turn: a rename outdates thousands. Some of those found
    at random: videos that can't be rewritten must not block the others.
    """
    global _page_after
    page = list(session.scalars(_PAGE, {"after": _page_after, "page": _PAGE_SIZE}))
    _page_after = page[-1] if len(page) == _PAGE_SIZE else ""
    if not page:
        return []
    found = list(session.scalars(_stale(page)))
    return random.sample(found, min(limit, len(found)))


def is_stale(session: Session, video_id: str) -> bool:
    """Whether a video is one of ``stale_videos``."""
    return session.scalars(_stale([video_id])).one_or_none() is not None


def _stale(video_ids: Sequence[str]) -> Select[str]:
    rewrites = (Job.subject_kind == "video", Job.subject_id == Video.video_id, Job.run == Video.run)
    recently = (Job.state == JobState.FAILED) & (Job.finished_at > seconds_from_now(-_PATIENCE_S))
    at_work = (
        select(Job.job_id)
        .where(*rewrites, Job.stage == graph.REWRITE_SIDECARS.name, Job.state.in_(LIVE) | recently)
        .limit(1)
    )
    outdated = select(Scene.scene_id).where(
        Scene.video_id == Video.video_id, Scene.people_changed, Scene.live
    )
    return select(Video.video_id).where(
        Video.video_id.in_(video_ids),
        outdated.limit(1).scalar_subquery().is_not(None),
        Video.deleted_at.is_(None),
        Video.published_run.is_not(None),
        at_work.scalar_subquery().is_(None),
    )


def queue(session: Session, video: Video, policy: RunPolicy, remove: Sequence[str] = ()) -> list[WakeUp]:
    """Queue a revision of a video, whose row is locked; ``remove``: sidecars that are no longer shown."""
    if video.deleted_at is not None or video.published_run is None:
        return []
    rewrites = run_jobs(video) & (Job.stage == graph.REWRITE_SIDECARS.name)
    part = session.scalars(select(func.coalesce(func.max(Job.part) + 1, 0)).where(rewrites)).one()
    job = make_job(video, graph.REWRITE_SIDECARS, policy, part=part, payload={"remove": list(remove)})
    return jobs.insert(session, [job])


def stale_scenes(session: Session, video_id: str, limit: int) -> Sequence[tuple[UUID, int, str | None]]:
    """Published scenes with an outdated sidecar: id, idx, the sidecar's key."""
    outdated = (Scene.video_id == video_id) & Scene.live & Scene.people_changed
    scenes = select(Scene.scene_id, Scene.idx, Scene.sidecar_key).where(outdated)
    return session.execute(scenes.order_by(Scene.idx).limit(limit)).all()


def show(
    session: Session, written: Mapping[UUID, tuple[str | None, str, Sequence[PersonInScene]]]
) -> list[str]:
    """Publish new sidecars: scene -> (old key, new key, people in the new one).

    A sidecar that another sidecar or change of people has overtaken is not published. Returns the keys that
    are no longer shown.
    """
    columns = (Scene.scene_id, Scene.face_run, Scene.sidecar_key, Scene.live)
    scenes = session.execute(select(*columns).where(Scene.scene_id.in_(written))).all()
    now = people_in(session, {row.scene_id: int(row.face_run or 0) for row in scenes})
    removed = {new for _, new, _ in written.values()}
    for row in scenes:
        old, new, people = written[row.scene_id]
        if not row.live or row.sidecar_key != old or list(now.get(row.scene_id, ())) != list(people):
            continue
        session.execute(
            update(Scene).where(Scene.scene_id == row.scene_id).values(sidecar_key=new, people_changed=False)
        )
        removed.discard(new)
        if old is not None:
            removed.add(old)
    return sorted(removed)
