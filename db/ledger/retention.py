"""Removes what the ledger no longer needs: ended jobs outside the pipeline, and runs that later ones have replaced.

The jobs of a video's newest and published runs stay, and those of runs whose outputs these reuse: its status, a retry and a
rerun read them. Failed jobs stay until they are tried again or replaced. Each function changes a limited number of rows, waits
for no lock, and may be repeated; what it leaves is found by the next call.
"""

from __future__ import annotations

from sqlalchemy import delete, exists, select, text
from sqlalchemy.orm import Session

from db.expressions import NOW, seconds_from_now
from db.ledger.jobs import IS_LIVE
from db.ledger.subjects import lock_video
from db.tables import Job, Run, Video
from shared.settings import get_settings

#: Maximum number of jobs that one transaction removes, and of runs that one look returns.
_MOST_JOBS, _MOST_RUNS = 2_000, 100

# The condition is that of the index ix_jobs_removable. A person's run that is open still reads its ended jobs.
_REMOVE_ENDED = text(
    """
    DELETE FROM jobs WHERE job_id = ANY(ARRAY(
        SELECT job_id FROM jobs
        WHERE (video_id IS NULL OR queue = 'housekeeping') AND state IN ('done', 'reused', 'cancelled', 'skipped')
            AND finished_at < clock_timestamp() - make_interval(secs => :keep_s)
            AND (lease_until IS NULL OR lease_until < clock_timestamp())
            AND NOT EXISTS (
                SELECT FROM people WHERE subject_kind = 'person' AND person_id = subject_id AND ended_run < jobs.run
            )
        ORDER BY finished_at LIMIT :most FOR UPDATE SKIP LOCKED
    ))
    """
)


def remove_ended(session: Session) -> int:
    """Delete some jobs outside the pipeline that ended long ago; returns how many."""
    values = {"keep_s": get_settings().jobs_retention_s, "most": _MOST_JOBS}
    return session.execute(_REMOVE_ENDED, values).rowcount  # type: ignore[attr-defined, no-any-return]


def replaced_runs(session: Session) -> list[tuple[str, int]]:
    """Some runs (video, number) that were replaced long ago, those first that have waited longest."""
    keep_s = get_settings().jobs_retention_s
    long_ago = Run.superseded_at < seconds_from_now(-keep_s)
    found = select(Run.video_id, Run.run).where(long_ago).order_by(Run.superseded_at).limit(_MOST_RUNS)
    return [(row.video_id, row.run) for row in session.execute(found)]


def remove_run(session: Session, video_id: str, number: int) -> None:
    """Delete a replaced run and its jobs, some at a time; one whose outputs still count stays until it is replaced again."""
    video = lock_video(session, video_id, skip_locked=True)
    run = None if video is None else session.get(Run, (video_id, number))
    if video is None or run is None:
        return
    if number in _needed_runs(session, video):
        run.superseded_at = None
        return
    of_run = (Job.video_id == video_id, Job.run == number)
    # A cancelled attempt ends its lease itself.
    ended = select(Job.job_id).where(*of_run, ~IS_LIVE, Job.lease_until.is_(None) | (Job.lease_until < NOW))
    session.execute(
        delete(Job).where(Job.job_id.in_(ended.limit(_MOST_JOBS))),
        execution_options={"synchronize_session": False},
    )
    if not session.scalar(select(exists().where(*of_run))):
        session.delete(run)


def _needed_runs(session: Session, video: Video) -> set[int]:
    """The newest and the published run of a video, and those whose outputs they reuse."""
    shown = {number for number in (video.run, video.published_run) if number is not None}
    made_by = session.scalars(
        select(Run.stage_runs).where(Run.video_id == video.video_id, Run.run.in_(shown))
    )
    return shown.union(*(map(int, runs.values()) for runs in made_by))
