"""How a video moves through the pipeline: start, advance, end, cancel, retry, rerun, delete.

Every function holds the lock on the video's row (``db.ledger.jobs.lock_video``) and works inside the caller's transaction.
``skips`` says which stages can't run here and why (a feature that is off, no model in the profile).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, func, literal, select, text, update
from sqlalchemy.orm import Session

from db.ledger import jobs
from db.ledger.jobs import NOW, WakeUp, seconds_from_now
from db.locks import AdvisoryLock
from db.tables import (
    TERMINAL,
    FaceDecision,
    FaceTrack,
    Job,
    MovedTrack,
    Person,
    Run,
    Scene,
    TranscriptPart,
    Video,
)
from shared import graph
from shared.errors import Conflict, QuotaExceeded
from shared.graph import PIPELINE
from shared.stage import Stage

_QUOTA_LOCK = text(f"SELECT pg_advisory_xact_lock({AdvisoryLock.OPEN_VIDEOS:d}, hashtext(:user_id))")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the fleet can do and how patient it is."""

    #: stage -> why it can't run.
    skips: Mapping[str, str]
    max_failures: int
    #: How long a failed run's temporary objects are kept for a retry, seconds.
    tmp_ttl_s: float
    #: Videos of one user that may wait or be in work; 0: no limit.
    max_open_videos: int = 0


@dataclass(frozen=True)
class StageState:
    """A stage of one run, summed over its parts."""

    state: str
    parts: int
    ended: int
    progress: float
    error_class: str | None
    error: str | None
    attempts: int

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL


# The state a stage shows, by the worst of its parts; a live part wins over all.
_SHOWN = ("running", "queued", "failed", "cancelled", "skipped", "done", "reused")


def stage_states(session: Session, video_id: str, run: int) -> dict[str, StageState]:
    """The stages of a run that have jobs."""
    return _states_by_video(session, Job.video_id == video_id, Job.run == run).get(video_id, {})


def newest_stage_states(session: Session, video_ids: Collection[str]) -> dict[str, dict[str, StageState]]:
    """The stages of some videos' newest runs that have jobs, by video."""
    newest = select(Video.run).where(Video.video_id == Job.video_id).scalar_subquery()
    return _states_by_video(session, Job.video_id.in_(video_ids), Job.run == newest)


def _states_by_video(session: Session, *which: ColumnElement[bool]) -> dict[str, dict[str, StageState]]:
    rows = session.execute(
        select(
            Job.video_id,
            Job.stage,
            Job.state,
            func.count().label("parts"),
            func.sum(Job.progress).label("progress"),
            func.max(Job.error_class).label("error_class"),
            func.max(Job.error).label("error"),
            func.max(Job.attempt).label("attempts"),
        )
        .where(*which)
        .group_by(Job.video_id, Job.stage, Job.state)
    ).all()
    found: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        found.setdefault((row.video_id, row.stage), []).append(row)
    states: dict[str, dict[str, StageState]] = {}
    for (video_id, stage), group in found.items():
        group.sort(key=lambda row: _SHOWN.index(row.state))
        parts = sum(row.parts for row in group)
        ended = sum(row.parts for row in group if row.state in TERMINAL)
        running = sum(row.progress for row in group if row.state not in TERMINAL)
        states.setdefault(video_id, {})[stage] = StageState(
            state=group[0].state,
            parts=parts,
            ended=ended,
            progress=(ended + running) / parts,
            error_class=next((row.error_class for row in group if row.error_class), None),
            error=next((row.error for row in group if row.error), None),
            attempts=max(row.attempts for row in group),
        )
    return states


def get_run(session: Session, video: Video) -> Run | None:
    return session.get(Run, (video.video_id, video.run), populate_existing=True)


def stages_of(run: Run) -> list[Stage]:
    """The stages a run makes or carries over. A run from before a stage existed ends without it; a rerun makes it."""
    return [
        stage
        for stage in PIPELINE
        if stage.name in run.stages or (not stage.stands_in_for and stage.name in run.stage_runs)
    ]


def kept_stages(run: Run) -> list[str]:
    """Stages that can't run here: a run that splits again keeps what an earlier one made of the same scenes."""
    if graph.SPLIT.name not in run.stages:
        return []
    return [name for name in graph.FULL_RUN if name in run.stage_runs and name not in run.stages]


def keep_split(session: Session, video_id: str, run: int, split: int) -> None:
    """The run's split has found what the run ``split`` had found: its scenes and their pictures count on."""
    found = session.get_one(Run, (video_id, run), populate_existing=True)
    found.stage_runs = {**found.stage_runs, graph.SPLIT.name: split}
    session.flush()


def start_run(
    session: Session,
    video: Video,
    stages: Collection[str],
    stage_runs: Mapping[str, int],
    plan: Plan,
) -> list[WakeUp]:
    """Open the video's next run: ``stages`` are made again, the others count from the runs in ``stage_runs``.

    Raises:
        QuotaExceeded: the user has as many other videos in work as one may have.
    """
    _require_room(session, video, plan)
    video.run += 1
    video.state = "uploaded"
    video.error_class = video.error = None
    ordered = [name for name in graph.PIPELINE_NAMES if name in stages]
    session.add(
        Run(
            video_id=video.video_id,
            run=video.run,
            stages=ordered,
            stage_runs={
                **{name: run for name, run in stage_runs.items() if name not in stages},
                **dict.fromkeys(ordered, video.run),
            },
        )
    )
    session.flush()
    return advance(session, video, plan)


def _require_room(session: Session, video: Video, plan: Plan) -> None:
    """Make sure that the user may have another video in work.

    Raises:
        QuotaExceeded: as many others wait or are in work as one user may have.
    """
    if not plan.max_open_videos:
        return
    # One request of a user at a time, or several would take the same last place.
    session.execute(_QUOTA_LOCK, {"user_id": video.user_id})
    others = (
        select(Video.video_id)
        .where(
            Video.user_id == video.user_id,
            Video.state.in_(("uploaded", "processing")),
            Video.video_id != video.video_id,
        )
        .limit(plan.max_open_videos)
    )
    if session.scalar(select(func.count()).select_from(others.subquery())) == plan.max_open_videos:
        raise QuotaExceeded(
            f"user {video.user_id!r} has {plan.max_open_videos} videos that wait or are in work, as many as"
            f" USER_MAX_OPEN_VIDEOS allows: send {video.external_id!r} again when one of them has ended"
        )


def advance(session: Session, video: Video, plan: Plan) -> list[WakeUp]:
    """Start every stage whose upstream has ended; end the run when all have. Harmless at any time."""
    run = get_run(session, video)
    if run is None or run.ended_at is not None or video.deleted_at is not None:
        return []
    planned = stages_of(run)
    names = {stage.name for stage in planned}
    wake_ups: list[WakeUp] = []
    states = stage_states(session, video.video_id, run.run)
    # One pass suffices for stages that end at once: PIPELINE lists a stage after all it waits for.
    for stage in planned:
        if stage.name in states:
            continue
        upstream = [states.get(name) for name in stage.after if name in names]
        if all(state is not None and state.is_terminal for state in upstream):
            new = _stage_jobs(session, video, run, stage, states, plan)
            wake_ups += jobs.insert(session, new)
            states = stage_states(session, video.video_id, run.run)
    if all(stage.name in states and states[stage.name].is_terminal for stage in planned):
        wake_ups += _end_run(session, video, run, states, plan)
    return wake_ups


def _stage_jobs(
    session: Session,
    video: Video,
    run: Run,
    stage: Stage,
    states: Mapping[str, StageState],
    plan: Plan,
) -> list[Job]:
    if stage.name not in run.stages:
        base = stage_states(session, video.video_id, int(run.stage_runs[stage.name]))[stage.name]
        reused = "reused" if base.state in ("done", "reused") else base.state
        return [
            _job(
                video,
                run,
                stage,
                plan,
                state=reused,
                error_class=base.error_class,
                error=base.error,
            )
        ]
    for name in stage.after:
        state = states.get(name)
        if state is None or state.state in ("done", "reused"):
            continue
        if not stage.essential or graph.STAGES[name].essential:
            return [
                _job(
                    video,
                    run,
                    stage,
                    plan,
                    state="skipped",
                    error=f"upstream {name} {state.state}",
                )
            ]
    if stage.name in plan.skips:
        return [_job(video, run, stage, plan, state="skipped", error=plan.skips[stage.name])]
    lost = _would_lose(session, video, run, states) if stage.name == graph.SIDECAR.name else None
    if lost is not None:
        reason = f"{lost} {states[lost].state}: the published run has it and is kept"
        return [_job(video, run, stage, plan, state="skipped", error=reason)]
    parts = _parts(session, video, run, stage)
    if not parts:
        return [_job(video, run, stage, plan, state="done")]
    return [_job(video, run, stage, plan, part=part, payload=payload) for part, payload in enumerate(parts)]


def _would_lose(session: Session, video: Video, run: Run, states: Mapping[str, StageState]) -> str | None:
    """The stage whose outputs callers see now and would not see in this run, as it failed; None: publish it."""
    if video.published_run is None or video.published_run == run.run:
        return None
    published = stage_states(session, video.video_id, video.published_run)
    for name in graph.SIDECAR.after:
        has = published.get(name)
        # A run from before a stage existed ends without it.
        if name not in states or has is None or has.state not in ("done", "reused"):
            continue
        if states[name].state not in ("done", "reused"):
            return name
    return None


def _job(
    video: Video,
    run: Run,
    stage: Stage,
    plan: Plan,
    *,
    state: str = "queued",
    **values: Any,
) -> Job:
    if state != "queued":
        values["finished_at"] = NOW
        values["progress"] = 1.0
    return Job(
        subject_kind="video",
        subject_id=video.video_id,
        video_id=video.video_id,
        user_id=video.user_id,
        queue=stage.queue,
        run=run.run,
        stage=stage.name,
        state=state,
        priority=video.priority,
        max_failures=plan.max_failures,
        **values,
    )


def _parts(session: Session, video: Video, run: Run, stage: Stage) -> list[dict[str, Any]]:
    """The payload of each part of a stage; none when there is nothing to do."""
    if stage.parts == "one":
        return [{}]
    if stage.parts == "windows":
        return [
            {"start_s": start, "end_s": end} for start, end in split_result(session, video, run)["windows"]
        ]
    weight: ColumnElement[int] = (
        func.jsonb_array_length(Scene.keyframes) if stage.parts == "keyframes" else literal(1)
    )
    rows = session.execute(
        select(Scene.idx, weight)
        .where(
            Scene.video_id == video.video_id,
            Scene.split_version == int(run.stage_runs[graph.SPLIT.name]),
        )
        .order_by(Scene.idx)
    ).all()
    parts: list[dict[str, Any]] = []
    filled = 0
    for idx, items in rows:
        if not parts or filled + items > stage.batch:
            parts.append({"first_idx": idx, "last_idx": idx})
            filled = 0
        parts[-1]["last_idx"] = idx
        filled += items
    return parts


def split_result(session: Session, video: Video, run: Run) -> dict[str, Any]:
    """What the split behind this run found: audio key, windows, counts."""
    return stage_result(session, video, run, graph.SPLIT.name)


def stage_result(session: Session, video: Video, run: Run, stage: str) -> dict[str, Any]:
    """What a one-part stage behind this run found."""
    # A run that has split again knows where its own audio lies, also if older scenes count on.
    number = run.run if stage in run.stages else int(run.stage_runs[stage])
    result = session.scalars(
        select(Job.result).where(
            Job.video_id == video.video_id, Job.run == number, Job.stage == stage, Job.part == 0
        )
    ).one()
    return dict(result or {})


def _end_run(
    session: Session,
    video: Video,
    run: Run,
    states: Mapping[str, StageState],
    plan: Plan,
) -> list[WakeUp]:
    broken = [
        name
        for name in graph.PIPELINE_NAMES
        if name in states and states[name].state in ("failed", "cancelled")
    ]
    sidecar = states[graph.SIDECAR.name]
    if sidecar.state in ("done", "reused"):
        video.published_run = run.run
        video.state = "partial" if broken else "indexed"
        video.indexed_at = NOW
    else:
        video.state = "failed"
    if broken:
        first = states[broken[0]]
        video.error_class, video.error = first.error_class, first.error
    elif video.state == "failed":
        video.error_class, video.error = Conflict.__name__, sidecar.error
    run.ended_at = NOW
    _cancel_unknown(session, run)
    session.flush()
    return jobs.insert(session, [_sweep(video, run, plan, wait_s=plan.tmp_ttl_s if broken else 0.0)])


def _cancel_unknown(session: Session, run: Run) -> None:
    """Cancel jobs of stages whose package has been uninstalled: no node may be left that consumes their queue."""
    unknown = (Job.video_id == run.video_id, Job.run == run.run, Job.stage.not_in(list(graph.STAGES)))
    if jobs.cancel(session, *unknown):
        reason = "no installed package has this stage"
        session.execute(update(Job).where(*unknown, Job.state == "cancelled").values(error=reason))


def _sweep(video: Video, run: Run, plan: Plan, *, wait_s: float) -> Job:
    job = _job(video, run, graph.SWEEP, plan)
    job.priority = 0
    if wait_s:
        job.not_before = seconds_from_now(wait_s)
    return job


def _stop(session: Session, video: Video) -> None:
    """End the open run, cancel its jobs. A running attempt keeps its lease until it notices and lets go."""
    jobs.cancel(session, Job.video_id == video.video_id)
    session.execute(
        update(Run).where(Run.video_id == video.video_id, Run.ended_at.is_(None)).values(ended_at=NOW)
    )


def cancel(session: Session, video: Video, plan: Plan) -> tuple[bool, list[WakeUp]]:
    """Stop the video's run. What is published stays. Returns whether there was anything to stop."""
    run = get_run(session, video)
    if run is None or run.ended_at is not None:
        return False, []
    _stop(session, video)
    video.state = "cancelled"
    session.flush()
    return True, jobs.insert(session, [_sweep(video, run, plan, wait_s=0.0)])


def retry(session: Session, video: Video, plan: Plan) -> tuple[bool, list[WakeUp]]:
    """Try the failed parts of the newest run again, and what hung on them.

    Failures start from zero; attempts go on counting, they are the fence. A cancelled run is started again.

    Raises:
        Conflict: the run has not ended, or nothing of it failed.
    """
    run = get_run(session, video)
    if run is None or run.ended_at is None:
        return False, []
    if video.state == "cancelled":
        return True, rerun(
            session,
            video,
            [name for name in run.stages if name in graph.PIPELINE_NAMES and name not in plan.skips],
            plan,
        )
    states = stage_states(session, video.video_id, run.run)
    failed = {
        name for name, state in states.items() if state.state == "failed" and name in graph.PIPELINE_NAMES
    }
    if not failed:
        raise Conflict(
            f"video {video.external_id} is {video.state}: nothing failed; use rerun to process it again"
        )
    # Taken away first: from here on nobody can claim it.
    unswept = session.execute(
        delete(Job).where(
            Job.video_id == video.video_id,
            Job.run == run.run,
            Job.stage == graph.SWEEP.name,
            Job.state == "queued",
        )
    )
    if not unswept.rowcount:  # type: ignore[attr-defined]
        # The run's temporary audio is gone, or going: make the failed stages in a new run.
        return True, rerun(session, video, failed, plan)
    _require_room(session, video, plan)
    hanging = graph.with_downstream(failed) - failed
    session.execute(
        delete(Job).where(
            Job.video_id == video.video_id,
            Job.run == run.run,
            Job.stage.in_(hanging),
        )
    )
    jobs.requeue_failed(session, Job.video_id == video.video_id, Job.run == run.run)
    session.execute(
        update(Run).where(Run.video_id == video.video_id, Run.run == run.run).values(ended_at=None)
    )
    video.state = "processing"
    video.error_class = video.error = None
    session.flush()
    session.refresh(run)
    again = session.scalars(
        select(Job).where(Job.video_id == video.video_id, Job.run == run.run, Job.state == "queued")
    ).all()
    return True, [WakeUp(job.queue, job.job_id) for job in again] + advance(session, video, plan)


def rerun(session: Session, video: Video, stages: Collection[str], plan: Plan) -> list[WakeUp]:
    """Process again: all stages, or the named ones and those downstream; the published run stays searchable.

    A stage that no published or current run has finished is stage_runs as well. One that can't run here keeps what the
    published run has of it. Cancels what runs.

    Raises:
        Conflict: a named stage can't run here.
    """
    for name in stages:
        if name in plan.skips:
            raise Conflict(f"{name} can't be stage_runs again: {plan.skips[name]}; name other stages")
    wanted = graph.with_downstream(stages) if stages else set(graph.FULL_RUN)
    published = video.published_run is not None
    base = video.published_run or video.run
    base_run = session.get(Run, (video.video_id, base))
    stage_runs: dict[str, int] = {}
    states: Mapping[str, StageState] = {}
    if base_run is not None:
        states = stage_states(session, video.video_id, base)
        stage_runs = {
            name: int(base_run.stage_runs.get(name, base))
            for name, state in states.items()
            if name in graph.PIPELINE_NAMES
            and state.is_terminal
            and (published or state.state in ("done", "reused"))
        }
    wanted |= graph.with_downstream(
        name for name in graph.FULL_RUN if name not in stage_runs and name not in wanted
    )
    wanted = set(graph.FULL_RUN) if graph.SPLIT.name in wanted else graph.with_stand_ins(wanted)
    if published:
        wanted -= {
            name
            for name in plan.skips
            if name in states and states[name].state in ("done", "reused", "failed")
        }
    _stop(session, video)
    return start_run(session, video, wanted, stage_runs, plan)


def missing_stages(session: Session, video: Video, plan: Plan) -> list[str]:
    """Stages that could run here now and of which the published run has nothing, or less than its other stages.

    They were off, or failed, or were kept while what they are stage_runs of was stage_runs again. None while a run is open.

    Raises:
        Conflict: nothing is published yet.
    """
    run = get_run(session, video)
    if run is not None and run.ended_at is None:
        return []
    published = (
        None if video.published_run is None else session.get(Run, (video.video_id, video.published_run))
    )
    if published is None:
        raise Conflict(
            f"video {video.external_id} is {video.state}, nothing of it is published: use retry or rerun"
        )
    states = stage_states(session, video.video_id, published.run)
    missing = []
    for name in graph.SIDECAR.after:
        if name in plan.skips:
            continue
        state = states.get(name)
        stage_runs = int(published.stage_runs.get(name, 0))
        has = state is not None and state.state in ("done", "reused")
        stale = any(
            int(published.stage_runs.get(before, 0)) > stage_runs
            for before in graph.STAGES[name].after
            if not graph.STAGES[before].stands_in_for
        )
        if not has or stale:
            missing.append(name)
    return missing


def begin_delete(session: Session, video: Video, plan: Plan) -> list[WakeUp]:
    """Make the id a tombstone and queue the erasure; nothing of the video is found from now on."""
    _stop(session, video)
    session.execute(update(Scene).where(Scene.video_id == video.video_id).values(live=False))
    video.state = "deleted"
    video.deleted_at = NOW
    video.run += 1
    run = Run(video_id=video.video_id, run=video.run, stages=[], stage_runs={})
    session.flush()
    return jobs.insert(session, [_job(video, run, graph.ERASE_VIDEO, plan)])


def erase_rows(session: Session, video: Video, job_id: int) -> None:
    """Remove every row of a deleted video but its tombstone and the erase job itself."""
    session.execute(delete(Job).where(Job.video_id == video.video_id, Job.job_id != job_id))
    session.execute(delete(Scene).where(Scene.video_id == video.video_id))
    session.execute(delete(TranscriptPart).where(TranscriptPart.video_id == video.video_id))
    session.execute(delete(FaceDecision).where(FaceDecision.video_id == video.video_id))
    # Nobody knows an unknown person by anything else than by tracks in videos.
    seen = select(FaceTrack.track_id).where(FaceTrack.person_id == Person.person_id).exists()
    unknown = (Person.user_id == video.user_id) & (Person.kind == "unknown") & Person.deleted_at.is_(None)
    idle = Person.ended_run >= Person.run
    still = Person.merged_into.is_(None) & Person.moving_event.is_(None)
    session.execute(delete(Person).where(unknown, idle, still, ~seen))
    session.execute(delete(MovedTrack).where(MovedTrack.video_id == video.video_id))
    session.execute(delete(Run).where(Run.video_id == video.video_id))
    video.storage_key = ""
    video.media = video.duration_s = video.published_run = video.indexed_at = None
    video.error_class = video.error = None
    session.flush()


def erase_again(session: Session, video: Video, plan: Plan) -> list[WakeUp]:
    """Look once more after the longest time limit: a writer nobody heard of may have left objects."""
    run = Run(video_id=video.video_id, run=video.run, stages=[], stage_runs={})
    job = _job(video, run, graph.ERASE_VIDEO, plan, part=1)
    job.not_before = seconds_from_now(float(graph.LONGEST_S))
    return jobs.insert(session, [job])


def stuck_videos(session: Session, limit: int = 100) -> list[str]:
    """Videos whose run is open while none of its jobs is queued or running: something has to advance them."""
    live = (
        select(Job.job_id)
        .where(
            Job.video_id == Run.video_id,
            Job.run == Run.run,
            Job.stage.in_(list(graph.STAGES)),
            Job.state.in_(("queued", "running")),
        )
        .exists()
    )
    return list(
        session.scalars(
            select(Run.video_id)
            .join(Video, (Video.video_id == Run.video_id) & (Video.run == Run.run))
            .where(Run.ended_at.is_(None), Video.deleted_at.is_(None), ~live)
            # Those that can't be advanced must not be the only ones that are looked at.
            .order_by(func.random())
            .limit(limit)
        )
    )
