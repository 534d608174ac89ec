"""Runs of videos: start, advance, end, cancel, retry, rerun, delete.

Every function holds the lock on the video's row (``db.ledger.subjects.lock_video``) and works inside the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Select, delete, func, literal, select, text, update
from sqlalchemy.orm import Session

from db.expressions import NOW, seconds_from_now
from db.ledger import jobs
from db.ledger.jobs import WakeUp, make_job
from db.ledger.policy import RunPolicy
from db.ledger.stage_states import StageState, stage_states
from db.locks import AdvisoryLock
from db.tables import (
    FaceDecision,
    FaceTrack,
    Job,
    JobState,
    MovedTrack,
    Person,
    Run,
    Scene,
    TranscriptPart,
    Video,
    WebhookDelivery,
)
from db.webhooks import deliveries
from shared import graph
from shared.errors import Conflict, QuotaExceeded
from shared.graph import PIPELINE
from shared.stage import Stage

_QUOTA_LOCK = text(f"SELECT pg_advisory_xact_lock({AdvisoryLock.OPEN_VIDEOS:d}, hashtext(:user_id))")


def _supersede(session: Session, video: Video) -> None:
    """Note the runs before the video's newest one, for their removal; which of them still count is looked up then."""
    before = (Run.video_id == video.video_id, Run.run < video.run, Run.superseded_at.is_(None))
    session.execute(update(Run).where(*before).values(superseded_at=NOW))


def get_run(session: Session, video: Video) -> Run | None:
    return session.get(Run, (video.video_id, video.run), populate_existing=True)


def stages_of(run: Run) -> list[Stage]:
    """The stages a run makes or reuses. A run from before a stage existed ends without it; a rerun makes it."""
    return [
        stage
        for stage in PIPELINE
        if stage.name in run.stages or (not stage.stands_in_for and stage.name in run.stage_runs)
    ]


def kept_stages(run: Run) -> list[str]:
    """Stages that can't run here, whose outputs a run that splits again keeps if the scenes are the same."""
    if graph.SPLIT.name not in run.stages:
        return []
    return [
        name
        for name in graph.FULL_RUN
        if name in run.stage_runs and name not in run.stages and name not in graph.LATE
    ]


def keep_split(session: Session, video_id: str, run: int, split: int) -> None:
    """Keep the scenes and pictures of the run ``split``, as the split of this run has found the same."""
    found = session.get_one(Run, (video_id, run), populate_existing=True)
    found.stage_runs = {**found.stage_runs, graph.SPLIT.name: split}
    session.flush()


def start_run(
    session: Session, video: Video, stages: Collection[str], stage_runs: Mapping[str, int], policy: RunPolicy
) -> list[WakeUp]:
    """Open the video's next run: it makes ``stages``, and reuses the others from the runs in ``stage_runs``.

    Raises:
        QuotaExceeded: the user has the maximum number of other videos in progress.
    """
    _require_room(session, video, policy)
    video.run += 1
    video.state = "uploaded"
    video.error_class = video.error = None
    ordered = [name for name in graph.PIPELINE_NAMES if name in stages]
    kept = {name: run for name, run in stage_runs.items() if name not in stages}
    made = dict.fromkeys(ordered, video.run)
    session.add(Run(video_id=video.video_id, run=video.run, stages=ordered, stage_runs={**kept, **made}))
    session.flush()
    _supersede(session, video)
    return advance(session, video, policy)


def _require_room(session: Session, video: Video, policy: RunPolicy) -> None:
    if not policy.max_open_videos:
        return
    # One request of a user at a time: several must not count the same videos.
    session.execute(_QUOTA_LOCK, {"user_id": video.user_id})
    is_open = (Video.user_id == video.user_id) & Video.state.in_(("uploaded", "processing"))
    others = (
        select(Video.video_id).where(is_open, Video.video_id != video.video_id).limit(policy.max_open_videos)
    )
    if session.scalar(select(func.count()).select_from(others.subquery())) == policy.max_open_videos:
        raise QuotaExceeded(
            f"user {video.user_id!r} has {policy.max_open_videos} videos that wait or are in work, as many as"
            f" USER_MAX_OPEN_VIDEOS allows: send {video.external_id!r} again when one of them has ended"
        )


def advance(session: Session, video: Video, policy: RunPolicy) -> list[WakeUp]:
    """Start every stage whose upstream stages have ended; end the run when all have. Harmless at any time."""
    run = get_run(session, video)
    if run is None or run.ended_at is not None or video.deleted_at is not None:
        return []
    planned = stages_of(run)
    names = {stage.name for stage in planned}
    wake_ups: list[WakeUp] = []
    states = stage_states(session, video.video_id, run.run)
    if parts := _next_parts(session, video, run, states, policy):
        wake_ups += jobs.insert(session, parts)
        states = stage_states(session, video.video_id, run.run)
    # One pass suffices for stages that end at once: PIPELINE lists a stage after all it waits for.
    for stage in planned:
        if stage.name in states or stage.late:
            continue
        upstream = [states.get(name) for name in stage.after if name in names]
        if all(state is not None and state.is_terminal for state in upstream):
            wake_ups += jobs.insert(session, _stage_jobs(session, video, run, stage, states, policy))
            states = stage_states(session, video.video_id, run.run)
    if all(stage.late or (stage.name in states and states[stage.name].is_terminal) for stage in planned):
        wake_ups += _end_run(session, video, run, states, policy)
    return wake_ups


def _next_parts(
    session: Session, video: Video, run: Run, states: Mapping[str, StageState], policy: RunPolicy
) -> list[Job]:
    """The parts that follow those of a split in spans: its first part names them, in rounds that follow each other."""
    stage = graph.SPLIT
    is_over = any(after in states for after in graph.with_downstream({stage.name}) - {stage.name})
    if stage.name not in run.stages or is_over or stage.name not in states:
        return []
    if states[stage.name].state != JobState.DONE:
        return []
    count = states[stage.name].parts
    of_first = (Job.video_id == video.video_id, Job.run == run.run, Job.stage == stage.name, Job.part == 0)
    rounds = session.scalar(select(Job.result["rounds"].astext).where(*of_first))
    if rounds is None:
        return []
    begun = 1
    for payloads in json.loads(rounds):
        if begun == count:
            # A video that is in work is finished before the next one of its user is begun.
            deeper = {"depth": graph.depth(stage.name) + 1}
            return [
                _job(video, stage, policy, part=count + number, payload=payload, **deeper)
                for number, payload in enumerate(payloads)
            ]
        begun += len(payloads)
    return []


def _stage_jobs(
    session: Session,
    video: Video,
    run: Run,
    stage: Stage,
    states: Mapping[str, StageState],
    policy: RunPolicy,
) -> list[Job]:
    def ended(state: JobState, **why: Any) -> list[Job]:
        return [_job(video, stage, policy, state=state, **why)]

    if stage.name not in run.stages:
        base = stage_states(session, video.video_id, int(run.stage_runs[stage.name]))[stage.name]
        state = JobState.REUSED if base.has_outputs else JobState(base.state)
        gap = {"items": base.not_looked_at} if base.not_looked_at else None
        return ended(state, error_class=base.error_class, error=base.error, not_looked_at=gap)
    for name in stage.after:
        before = states.get(name)
        if before is None or before.has_outputs:
            continue
        if not stage.essential or graph.STAGES[name].essential:
            return ended(JobState.SKIPPED, error=f"upstream {name} {before.state}")
    if stage.name in policy.skips:
        return ended(JobState.SKIPPED, error=policy.skips[stage.name])
    lost = _would_lose(session, video, run, states) if stage.name == graph.SIDECAR.name else None
    if lost is not None:
        reason = f"{lost} {states[lost].state}: the published run has it and is kept"
        return ended(JobState.SKIPPED, error=reason)
    parts = _parts(session, video, run, stage)
    if not parts:
        return ended(JobState.DONE)
    return [_job(video, stage, policy, part=part, payload=payload) for part, payload in enumerate(parts)]


def _would_lose(session: Session, video: Video, run: Run, states: Mapping[str, StageState]) -> str | None:
    """A stage that failed in this run and has published outputs, which publishing the run would hide; or None."""
    if video.published_run is None or video.published_run == run.run:
        return None
    published = stage_states(session, video.video_id, video.published_run)
    for name in graph.SIDECAR.after:
        has = published.get(name)
        # A run from before a stage existed ends without it.
        if name in states and has is not None and has.has_outputs and not states[name].has_outputs:
            return name
    return None


def _job(video: Video, stage: Stage, policy: RunPolicy, **values: Any) -> Job:
    return make_job(video, stage, policy, **{"priority": video.priority, **values})


def _parts(session: Session, video: Video, run: Run, stage: Stage) -> list[dict[str, Any]]:
    """The payload of each part of a stage; none when there is nothing to do."""
    if stage.parts == "one":
        return [{}]
    if stage.parts == "windows":
        windows = split_result(session, video, run)["windows"]
        return [{"start_s": start, "end_s": end} for start, end in windows]
    weight = func.jsonb_array_length(Scene.keyframes) if stage.parts == "keyframes" else literal(1)
    of_split = Scene.split_version == int(run.stage_runs[graph.SPLIT.name])
    scenes = select(Scene.idx, weight).where(Scene.video_id == video.video_id, of_split).order_by(Scene.idx)
    parts: list[dict[str, Any]] = []
    filled = 0
    for idx, items in session.execute(scenes):
        if not parts or filled + items > stage.batch:
            parts.append({"first_idx": idx, "last_idx": idx})
            filled = 0
        parts[-1]["last_idx"] = idx
        filled += items
    return parts


def split_result(session: Session, video: Video, run: Run) -> dict[str, Any]:
    """The result of this run's split: audio key, windows, counts."""
    return stage_result(session, video, run, graph.SPLIT.name)


def stage_result(session: Session, video: Video, run: Run, stage: str) -> dict[str, Any]:
    """The result of a stage's last part in this run, or in the run it is reused from."""
    return part_results(session, video, run, stage)[-1][1]


def part_results(
    session: Session, video: Video, run: Run, stage: str
) -> list[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Payload and result of each part of a stage, as ``stage_result``."""
    # A run that has split again has its own audio, even if it keeps older scenes.
    number = run.run if stage in run.stages else int(run.stage_runs[stage])
    of_stage = (Job.video_id == video.video_id, Job.run == number, Job.stage == stage)
    found = session.execute(select(Job.payload, Job.result).where(*of_stage).order_by(Job.part))
    return [(payload, dict(result or {})) for payload, result in found]


def _end_run(
    session: Session, video: Video, run: Run, states: Mapping[str, StageState], policy: RunPolicy
) -> list[WakeUp]:
    ended_badly = (JobState.FAILED, JobState.CANCELLED)
    broken = [
        name
        for name in graph.PIPELINE_NAMES
        if name in states and name not in graph.LATE and states[name].state in ended_badly
    ]
    sidecar = states[graph.SIDECAR.name]
    if sidecar.has_outputs:
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
    _supersede(session, video)
    deliveries.video_ended(session, video)
    late = _late_jobs(session, video, run, states, policy)
    again = broken or any(states[name].not_looked_at for name in run.stages if name in states)
    return _sweep(session, video, policy, wait_s=policy.tmp_ttl_s if again else 0.0) + jobs.insert(
        session, late
    )


def _late_jobs(
    session: Session, video: Video, run: Run, states: Mapping[str, StageState], policy: RunPolicy
) -> list[Job]:
    """The jobs of stages that begin when the run has ended; skipped unless it is published."""
    found: list[Job] = []
    for stage in stages_of(run):
        if not stage.late or stage.name in states:
            continue
        if video.published_run == run.run:
            found += _stage_jobs(session, video, run, stage, states, policy)
        else:
            reason = f"upstream {graph.SIDECAR.name} {states[graph.SIDECAR.name].state}"
            found.append(_job(video, stage, policy, state=JobState.SKIPPED, error=reason))
    return found


def _cancel_unknown(session: Session, run: Run) -> None:
    """Cancel jobs of stages whose package has been uninstalled: their queue may have no node."""
    unknown = (Job.video_id == run.video_id, Job.run == run.run, Job.stage.not_in(list(graph.STAGES)))
    if jobs.cancel(session, *unknown):
        reason = "no installed package has this stage"
        session.execute(update(Job).where(*unknown, Job.state == JobState.CANCELLED).values(error=reason))


def _sweep(session: Session, video: Video, policy: RunPolicy, *, wait_s: float = 0.0) -> list[WakeUp]:
    """Queue the removal of objects that no row refers to."""
    due = {"not_before": seconds_from_now(wait_s)} if wait_s else {}
    return jobs.insert(session, [make_job(video, graph.SWEEP, policy, **due)])


def sweep_again(session: Session, video: Video, policy: RunPolicy) -> list[WakeUp]:
    """Queue a further removal of objects that no row refers to, after the run's own."""
    of_run = (Job.video_id == video.video_id, Job.run == video.run, Job.stage == graph.SWEEP.name)
    last = session.scalar(select(func.max(Job.part)).where(*of_run))
    part = 0 if last is None else last + 1
    return jobs.insert(session, [make_job(video, graph.SWEEP, policy, part=part)])


def _stop(session: Session, video: Video) -> None:
    """End the open run and cancel its jobs. A running attempt keeps its lease until it notices."""
    jobs.cancel(session, Job.video_id == video.video_id)
    is_open = (Run.video_id == video.video_id) & Run.ended_at.is_(None)
    session.execute(update(Run).where(is_open).values(ended_at=NOW))


def cancel(session: Session, video: Video, policy: RunPolicy) -> tuple[bool, list[WakeUp]]:
    """Stop the video's run, or its late stages. What is published stays. Returns whether there was anything to stop."""
    run = get_run(session, video)
    if run is None:
        return False, []
    if run.ended_at is not None:
        late = (Job.video_id == video.video_id, Job.run == run.run, Job.stage.in_(graph.LATE))
        return jobs.cancel(session, *late) > 0, []
    _stop(session, video)
    video.state = "cancelled"
    session.flush()
    deliveries.video_ended(session, video)
    return True, _sweep(session, video, policy)


def retry(session: Session, video: Video, policy: RunPolicy) -> tuple[bool, list[WakeUp]]:
    """Run the failed parts of the newest run again, and those left out, and what depends on them; a cancelled run starts again.

    Failures start from zero; attempts go on counting, they are the fence. Returns False while the run is open.

    Raises:
        Conflict: nothing of it failed.
    """
    run = get_run(session, video)
    if run is None or run.ended_at is None:
        return False, []
    if video.state == "cancelled":
        stages = [name for name in run.stages if name in graph.PIPELINE_NAMES and name not in policy.skips]
        return True, rerun(session, video, stages, policy)
    states = stage_states(session, video.video_id, run.run)
    failed = {
        name
        for name in graph.PIPELINE_NAMES
        if name in states and (states[name].state == JobState.FAILED or states[name].not_looked_at)
    }
    if not failed:
        raise Conflict(
            f"video {video.external_id} is {video.state}: nothing failed; use rerun to process it again"
        )
    of_run = (Job.video_id == video.video_id) & (Job.run == run.run)
    # Deleted first: from here on it can't be claimed.
    sweep = (Job.stage == graph.SWEEP.name) & (Job.state == JobState.QUEUED)
    unswept = session.execute(delete(Job).where(of_run, sweep))
    of_others = any(states[name].state == JobState.REUSED for name in failed)
    if of_others or not unswept.rowcount:  # type: ignore[attr-defined]
        # The run's temporary audio is being removed, or the parts are another run's: make the stages in a new run.
        return True, rerun(session, video, failed, policy)
    _require_room(session, video, policy)
    session.execute(delete(Job).where(of_run, Job.stage.in_(graph.with_downstream(failed) - failed)))
    jobs.requeue_failed(session, of_run)
    run.ended_at = None
    video.state = "processing"
    video.error_class = video.error = None
    session.flush()
    again = session.scalars(select(Job).where(of_run, Job.state == JobState.QUEUED)).all()
    return True, [WakeUp(job.queue, job.job_id) for job in again] + advance(session, video, policy)


def rerun(session: Session, video: Video, stages: Collection[str], policy: RunPolicy) -> list[WakeUp]:
    """Process again: all stages, or the named ones and those downstream; the published run stays searchable.

    A stage that no published or current run has finished is made as well. One that can't run here keeps what the
    published run has of it. Cancels what runs.

    Raises:
        Conflict: a named stage can't run here.
    """
    for name in stages:
        if name in policy.skips:
            raise Conflict(f"{name} can't be made again: {policy.skips[name]}; name other stages")
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
            if name in graph.PIPELINE_NAMES and state.is_terminal and (published or state.has_outputs)
        }
    wanted |= graph.with_downstream(name for name in graph.FULL_RUN if name not in wanted | stage_runs.keys())
    wanted = set(graph.FULL_RUN) if graph.SPLIT.name in wanted else graph.with_stand_ins(wanted)
    if published:
        wanted -= {
            name
            for name in policy.skips
            if name in states and (states[name].has_outputs or states[name].state == JobState.FAILED)
        }
    _stop(session, video)
    return start_run(session, video, wanted, stage_runs, policy)


def missing_stages(session: Session, video: Video, policy: RunPolicy) -> list[str]:
    """Stages that can run here and that the published run lacks, or has from before their upstream stages.

    They were off, or failed, or were kept while an upstream stage ran again. None while a run is open.

    Raises:
        Conflict: nothing is published yet.
    """
    run = get_run(session, video)
    if run is not None and run.ended_at is None:
        return []
    published = session.get(Run, (video.video_id, video.published_run)) if video.published_run else None
    if published is None:
        raise Conflict(
            f"video {video.external_id} is {video.state}, nothing of it is published: use retry or rerun"
        )
    states = stage_states(session, video.video_id, published.run)
    missing = []
    for name in (*graph.SIDECAR.after, *graph.LATE):
        if name in policy.skips:
            continue
        state = states.get(name)
        if name in graph.LATE and state is not None and not state.is_terminal:
            continue
        stage_runs = int(published.stage_runs.get(name, 0))
        upstream = (before for before in graph.STAGES[name].after if not graph.STAGES[before].stands_in_for)
        stale = any(int(published.stage_runs.get(before, 0)) > stage_runs for before in upstream)
        if state is None or not state.has_outputs or stale:
            missing.append(name)
    return missing


def begin_delete(session: Session, video: Video, policy: RunPolicy) -> list[WakeUp]:
    """Make the id a tombstone, hide the video's scenes, and queue the erasure."""
    _stop(session, video)
    session.execute(update(Scene).where(Scene.video_id == video.video_id).values(live=False))
    video.state = "deleted"
    video.deleted_at = NOW
    video.run += 1
    session.flush()
    return jobs.insert(session, [_job(video, graph.ERASE_VIDEO, policy)])


def erase_rows(session: Session, video: Video, job_id: int) -> None:
    """Remove every row of a deleted video but its tombstone and the erase job itself."""
    session.execute(delete(Job).where(Job.video_id == video.video_id, Job.job_id != job_id))
    for table in (Scene, TranscriptPart, FaceDecision, WebhookDelivery):
        session.execute(delete(table).where(table.video_id == video.video_id))
    # An unknown person is known by tracks in videos only.
    seen = select(FaceTrack.track_id).where(FaceTrack.person_id == Person.person_id).exists()
    unknown = (Person.user_id == video.user_id) & (Person.kind == "unknown") & Person.deleted_at.is_(None)
    idle = Person.ended_run >= Person.run
    still = Person.merged_into.is_(None) & Person.moving_event.is_(None)
    session.execute(delete(Person).where(unknown, idle, still, ~seen))
    session.execute(delete(MovedTrack).where(MovedTrack.video_id == video.video_id))
    session.execute(delete(Run).where(Run.video_id == video.video_id))
    video.storage_key = ""
    video.media = video.rendition = video.duration_s = video.published_run = video.indexed_at = None
    video.error_class = video.error = None
    session.flush()


def erase_again(session: Session, video: Video, policy: RunPolicy) -> list[WakeUp]:
    """Queue a second erasure after the longest time limit: a late writer may have left objects."""
    due = seconds_from_now(float(graph.LONGEST_S))
    return jobs.insert(session, [_job(video, graph.ERASE_VIDEO, policy, part=1, not_before=due)])


def find_stuck(session: Session, limit: int = 100) -> list[str]:
    """Videos that something has to advance."""

    def page(after: str, count: int) -> Select[str, int]:
        runs = select(Run.video_id, Run.run).where(Run.ended_at.is_(None), Run.video_id > after)
        return runs.order_by(Run.video_id).limit(count)

    found = jobs.find_stuck(session, "video", page, limit)
    if not found:
        return []
    newest = (Video.video_id == Run.video_id) & (Video.run == Run.run) & Run.ended_at.is_(None)
    still = select(Video.video_id).join(Run, newest).where(Video.deleted_at.is_(None))
    return list(session.scalars(still.where(Video.video_id.in_(found))))
