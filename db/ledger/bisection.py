"""Bisection: what becomes of a part whose process died each time, also alone on its node.

A part of many items (keyframes, scenes, a window of sound) is halved: the job keeps the first half, a new job gets the
other. The keyframes of one scene make one result, so they are searched by trial attempts of the job itself, whose outputs
are dropped; then the job runs without those that are at fault. What is left when nothing can be halved is left out, and
``Job.not_looked_at`` says so.

``Job.payload`` while the keyframes of a scene are searched: ``trials``, the keyframes of each attempt to come, and
``without``, those left out so far; both by ordinal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.ledger.jobs import SubjectRow, make_job
from db.ledger.policy import RunPolicy
from db.tables import Job, Run, Scene, Video
from shared import graph
from shared.plugins import find_function
from shared.stage import Stage

#: Sound is not cut into shorter windows, seconds.
LEAST_WINDOW_S = 10.0
#: What callers are told; ``Job.error`` says more.
REASON = "The process died each time it worked on this"

Payload = dict[str, Any]


def cut(session: Session, subject: SubjectRow, job: Job, policy: RunPolicy) -> Sequence[Job] | None:
    """Make the part of a deadly job smaller. Returns the jobs to insert for what it no longer has.

    None: there is nothing left to try, and the job has failed. ``job.not_looked_at`` is set if it had a part of a video's
    items; the others go on.
    """
    stage = graph.find_stage(job.stage)
    if not isinstance(subject, Video) or (stage.parts == "one" and not stage.halve):
        return None
    if "without" in job.payload:
        keyframes = _keyframes(session, subject, job)
        # Without a trial the rest has died too, after those at fault were left out.
        if job.payload["trials"]:
            _end_trial(job, died=True)
            if len(job.payload["without"]) < len(keyframes):
                _expect(job, policy)
                return []
        job.not_looked_at = _items(job.payload, keyframes)
        return None
    if halves := _halves(stage, job.payload):
        first, other = halves
        job.payload = dict(first)
        _expect(job, policy, many=_has_many(session, subject, stage, job))
        new = make_job(
            subject, stage, policy, part=_next_part(session, job), payload=dict(other), priority=job.priority
        )
        new.run = job.run
        _expect(new, policy, many=_has_many(session, subject, stage, new))
        return [new]
    keyframes = _keyframes(session, subject, job) if stage.parts == "keyframes" else []
    if len(keyframes) > 1:
        job.payload = {**job.payload, "trials": _split(keyframes), "without": []}
        _expect(job, policy)
        return []
    job.not_looked_at = _items(job.payload, keyframes)
    return None


def survived(job: Job, policy: RunPolicy) -> bool:
    """Whether the attempt that has ended well was a trial. The job then has to run again."""
    if not job.payload.get("trials"):
        return False
    _end_trial(job, died=False)
    _expect(job, policy)
    return True


def left_out(job: Job) -> dict[str, Any] | None:
    """What a job that is done has left out; None: nothing."""
    without = job.payload.get("without")
    return _items(job.payload, without) if without else None


def shown_keyframes(payload: Mapping[str, Any], keyframes: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The keyframes of a scene that an attempt with this payload looks at."""
    trials, without = payload.get("trials"), payload.get("without", ())
    return [
        keyframe
        for keyframe in keyframes
        if (keyframe["ordinal"] in trials[0] if trials else keyframe["ordinal"] not in without)
    ]


def _end_trial(job: Job, *, died: bool) -> None:
    """Drop the first trial; of one that died its halves are tried, or its one keyframe is left out."""
    (first, *rest), without = job.payload["trials"], job.payload["without"]
    if died and len(first) > 1:
        rest = [*_split(first), *rest]
    elif died:
        without = [*without, *first]
    job.payload = {**job.payload, "trials": rest, "without": without}


def _expect(job: Job, policy: RunPolicy, *, many: bool | None = None) -> None:
    """Count deaths from where the part's suspicion stands: it runs alone, and one death more halves several items.

    One item is left out only after deaths of its own.
    """
    if many is None:
        trials = job.payload["trials"]
        many = bool(trials) and len(trials[0]) > 1
    job.failures = 0
    job.deaths, job.deaths_alone = (
        (policy.max_deaths - 1, policy.max_deaths_alone - 1)
        if many
        else (policy.max_deaths - policy.max_deaths_alone, 0)
    )


def _halves(stage: Stage, payload: Mapping[str, Any]) -> tuple[Payload, Payload] | None:
    """The payloads of both halves of a part; None: it can't be halved."""
    if stage.halve:
        halves: tuple[Payload, Payload] | None = find_function(stage.halve)(dict(payload))
        return halves
    if stage.parts == "windows":
        start_s, end_s = float(payload["start_s"]), float(payload["end_s"])
        middle_s = round((start_s + end_s) / 2, 3)
        if end_s - start_s < 2 * LEAST_WINDOW_S:
            return None
        return {**payload, "end_s": middle_s}, {**payload, "start_s": middle_s}
    first, last = int(payload["first_idx"]), int(payload["last_idx"])
    middle = (first + last) // 2
    if first == last:
        return None
    return {**payload, "last_idx": middle}, {**payload, "first_idx": middle + 1}


def _has_many(session: Session, video: Video, stage: Stage, job: Job) -> bool:
    """Whether a part can be made smaller still."""
    if _halves(stage, job.payload) is not None:
        return True
    return stage.parts == "keyframes" and len(_keyframes(session, video, job)) > 1


def _keyframes(session: Session, video: Video, job: Job) -> list[int]:
    """The ordinals of the keyframes of a part of one scene."""
    if "first_idx" not in job.payload:
        return []
    run = session.get_one(Run, (video.video_id, job.run))
    split = int(run.stage_runs[graph.SPLIT.name])
    one = (
        Scene.video_id == video.video_id,
        Scene.split_version == split,
        Scene.idx == job.payload["first_idx"],
    )
    found = session.scalars(select(Scene.keyframes).where(*one)).one_or_none() or []
    return [int(keyframe["ordinal"]) for keyframe in found]


def _items(payload: Mapping[str, Any], keyframes: Sequence[int]) -> dict[str, Any]:
    """What is left out, as ``Job.not_looked_at`` has it; ``items`` is their number."""
    part = {name: value for name, value in payload.items() if name not in ("trials", "without")}
    if keyframes:
        part["keyframes"] = sorted(keyframes)
    return {**part, "items": max(1, len(keyframes))}


def _split(items: Sequence[int]) -> list[list[int]]:
    middle = (len(items) + 1) // 2
    return [list(items[:middle]), list(items[middle:])]


def _next_part(session: Session, job: Job) -> int:
    same = (Job.subject_kind == job.subject_kind, Job.subject_id == job.subject_id)
    last = select(func.max(Job.part)).where(*same, Job.run == job.run, Job.stage == job.stage)
    return session.scalars(last).one() + 1
