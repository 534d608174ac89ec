"""A switch of the searched model: the new model's vectors are made beside the old ones, then the pointer is moved.

While a switch is open both models' vectors are written for whatever is indexed, so the pointer can go either way at any
time and nothing is lost by it. The archive is looked through in the order in which videos were indexed; what has a vector
of the old model and none of the new is given to a job. Locks: the switch's row first, then a video's; whoever holds a
video's row and has to know which models are kept takes the switch's only FOR KEY SHARE, which no job's end waits for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Row, Text, cast, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db import jobs
from db.jobs import NOW, Bell
from db.runs import Plan
from db.tables import ActiveModel, Job, Model, ModelSwitch, Scene
from db.vectors import ModelRow
from shared import graph
from shared.errors import Conflict, NotFound

#: Jobs that wait at once: the next are planned when half of them are done.
_WINDOW = 128
#: Behind every video in work, and behind people who are looked for.
_PRIORITY = -2
#: A run may be published this long after the time it was given: younger videos are looked at again.
_LATE = timedelta(minutes=10)
_VIDEOS_AT_ONCE = 20
#: Of so many at most in one transaction, however little they lack: it holds the switch.
_STRETCH = 2_000
#: The speed is that of the last so many seconds.
_SPEED_S = 120
#: Of a scene's words: enough to try a model, few enough for a message.
_SAMPLE_CHARS = 500
_BEGIN_LOCK = 7_305_003
#: Of a switch, in which both models are kept.
_BOTH = ("building", "ready", "flipped")


@dataclass(frozen=True)
class Progress:
    """How far a switch is."""

    #: Jobs that were given up, and the first one's error.
    failed: int
    error: str | None
    #: Scenes a second lately; None: nothing was done lately.
    scenes_per_s: float | None


def active_models(session: Session) -> dict[str, ModelRow]:
    """Kind -> the model a switch has made active; a kind that was never switched is absent."""
    rows = session.execute(
        select(ActiveModel.kind, Model).join(Model, Model.model_id == ActiveModel.model_id)
    ).all()
    return {kind: model_row(model) for kind, model in rows}


def searched_model(session: Session, kind: str) -> int | None:
    """The id of the model that is searched now; None: there never was a switch."""
    return session.scalars(select(ActiveModel.model_id).where(ActiveModel.kind == kind)).one_or_none()


def model_row(model: Model) -> ModelRow:
    return ModelRow(model.model_id, model.name, model.revision, model.family, model.dim, model.metric)


def models_of(session: Session, switch: ModelSwitch) -> tuple[ModelRow, ModelRow]:
    """The old model and the new one."""
    old, new = (session.get_one(Model, model) for model in (switch.from_model, switch.to_model))
    return model_row(old), model_row(new)


def kept_models(session: Session, kind: str, *, lock: bool = False) -> tuple[ModelRow, ...]:
    """The two models of an open switch; empty when there is none, or one of them is being dropped.

    ``lock``: nothing is dropped before the end of this transaction.
    """
    query = select(ModelSwitch).where(ModelSwitch.kind == kind, ModelSwitch.state.in_(_BOTH))
    if lock:
        query = query.with_for_update(read=True, key_share=True)
    switch = session.scalars(query, execution_options={"populate_existing": True}).one_or_none()
    return () if switch is None else models_of(session, switch)


def find(session: Session, kind: str, *, lock: bool = False) -> ModelSwitch | None:
    """The open switch of a kind."""
    query = select(ModelSwitch).where(ModelSwitch.kind == kind, ModelSwitch.state != "ended")
    if lock:
        query = query.with_for_update()
    return session.scalars(query, execution_options={"populate_existing": True}).one_or_none()


def require(session: Session, kind: str) -> ModelSwitch:
    """The open switch of a kind, locked.

    Raises:
        NotFound: there is none.
    """
    switch = find(session, kind, lock=True)
    if switch is None:
        raise NotFound(f"no switch of the {kind} model is open: begin one with --to NAME")
    return switch


def begin(
    session: Session, kind: str, active: ModelRow, new: ModelRow, plan: Plan, *, dry_run: bool = False
) -> list[Bell]:
    """Start giving the archive vectors of the model ``new``; sent again, it changes nothing.

    ``active``: searched now, unless a switch has chosen another one, which the caller may not know yet.

    Raises:
        Conflict: ``new`` is active already, or a switch to another model is open.
    """
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _BEGIN_LOCK})
    switch = find(session, kind, lock=True)
    if switch is not None:
        _, other = models_of(session, switch)
        if other.model_id != new.model_id or switch.state not in _BOTH:
            raise Conflict(
                f"a switch of the {kind} model to {other.name} is {switch.state}: end it first, with --drop"
            )
        return [] if dry_run else advance(session, switch, plan)
    active = active_models(session).get(kind, active)
    if active.model_id == new.model_id:
        raise Conflict(f"{new.name} is the active {kind} model already: there is nothing to switch")
    if dry_run:
        return []
    switch = ModelSwitch(
        kind=kind,
        from_model=active.model_id,
        to_model=new.model_id,
        total=count(session, kind, active),
    )
    session.add(switch)
    session.flush()
    # From now on: a setting changed meanwhile would have searches use vectors that are not complete.
    _let_be_active(session, kind, active.model_id)
    return advance(session, switch, plan)


def _let_be_active(session: Session, kind: str, model_id: int) -> None:
    session.execute(
        insert(ActiveModel)
        .values(kind=kind, model_id=model_id)
        .on_conflict_do_update(index_elements=["kind"], set_={"model_id": model_id, "changed_at": NOW})
    )


def count(session: Session, kind: str, model: ModelRow) -> int:
    """How many published scenes have a vector of a model."""
    statement = text(
        "SELECT count(*) FROM scenes s WHERE s.live AND EXISTS (SELECT 1 FROM embeddings e"
        f" WHERE e.scene_id = s.scene_id AND e.model_id = {int(model.model_id)} AND e.run = s.{_run(kind)})"
    )
    return int(session.execute(statement).scalar_one())


def _run(kind: str) -> str:
    return "text_run" if kind == "text" else "vision_run"


def stage_of(kind: str) -> graph.Stage:
    """What makes a kind's vectors anew."""
    return graph.TEXT_ANEW if kind == "text" else graph.VISION_ANEW


def lacking(
    session: Session, kind: str, old: ModelRow, new: ModelRow, video_ids: list[str]
) -> list[Row[Any]]:
    """Published scenes of these videos that have a vector of ``old`` and none of ``new``: video_id, user_id, idxs.

    A scene whose words have gone since has nothing to be embedded, and never gets one.
    """
    something = "AND s.transcript <> ''" if kind == "text" else ""
    run = f"s.{_run(kind)}"
    has = (
        "EXISTS (SELECT 1 FROM embeddings e WHERE e.scene_id = s.scene_id AND e.model_id = {} AND e.run = {})"
    )
    return list(
        session.execute(
            text(
                "SELECT s.video_id, s.user_id, array_agg(s.idx ORDER BY s.idx) AS idxs FROM scenes s"
                f" WHERE s.video_id = ANY(:videos) AND s.live {something} AND {has.format(int(old.model_id), run)}"
                f" AND NOT {has.format(int(new.model_id), run)} GROUP BY s.video_id, s.user_id ORDER BY s.video_id"
            ),
            {"videos": video_ids},
        )
    )


def advance(session: Session, switch: ModelSwitch, plan: Plan) -> list[Bell]:
    """Plan the next jobs; the switch is ready when nothing lacks a vector. Harmless at any time."""
    if switch.state not in _BOTH:
        return []
    states: Mapping[str, int] = {
        row.state: row.jobs
        for row in session.execute(
            select(Job.state, func.count().label("jobs"))
            .where(*_own(switch), Job.state.in_(("queued", "running", "failed")))
            .group_by(Job.state)
        )
    }
    live = states.get("queued", 0) + states.get("running", 0)
    if live >= _WINDOW // 2:
        return []
    _forget_done(session, switch)
    planned, at_end = _plan_more(session, switch, plan, _WINDOW - live, stretch=_STRETCH)
    if at_end and not planned and not live and not states.get("failed"):
        _look_again(session, switch)
        planned, at_end = _plan_more(session, switch, plan, _WINDOW)
        if at_end and not planned and switch.state == "building":
            switch.state, switch.ready_at = "ready", NOW
    session.flush()
    return jobs.insert(session, planned)


def _own(switch: ModelSwitch) -> tuple[Any, ...]:
    return (
        Job.subject_kind == "switch",
        Job.subject_id == str(switch.switch_id),
        Job.run == switch.run,
    )


def _forget_done(session: Session, switch: ModelSwitch) -> None:
    """Remove done jobs: a large archive has hundreds of thousands, and they are counted at every job's end."""
    session.execute(
        delete(Job).where(
            *_own(switch), Job.state == "done", Job.finished_at < NOW - timedelta(seconds=_SPEED_S)
        )
    )


def _look_again(session: Session, switch: ModelSwitch) -> None:
    """Videos that were indexed lately may have come into sight behind the place that was reached."""
    if switch.seen_until is None:
        return
    now: datetime = session.execute(select(NOW)).scalar_one()
    # While it is built the place may have been reached long ago, and the last jobs have taken their time.
    back_to = min(switch.seen_until, now) - _LATE if switch.state == "building" else now - _LATE
    if switch.seen_until > back_to:
        switch.seen_until, switch.seen_video = back_to, ""


def _plan_more(
    session: Session, switch: ModelSwitch, plan: Plan, most: int, *, stretch: int | None = None
) -> tuple[list[Job], bool]:
    """Jobs for the videos behind the place that was reached; moves the place on.

    Ends at the video that makes them ``most``, or after ``stretch`` videos. Returns also whether no video is left.
    """
    old, new = models_of(session, switch)
    stage = stage_of(switch.kind)
    part = session.execute(
        select(func.coalesce(func.max(Job.part), -1)).where(*_own(switch), Job.stage == stage.name)
    ).scalar_one()
    planned: list[Job] = []
    looked_at = 0
    while stretch is None or looked_at < stretch:
        videos = session.execute(
            text(
                "SELECT video_id, indexed_at FROM videos WHERE indexed_at IS NOT NULL AND deleted_at IS NULL"
                " AND (CAST(:until AS timestamptz) IS NULL OR (indexed_at, video_id) > (CAST(:until AS timestamptz), :video))"
                " ORDER BY indexed_at, video_id LIMIT :count"
            ),
            {"until": switch.seen_until, "video": switch.seen_video, "count": _VIDEOS_AT_ONCE},
        ).all()
        if not videos:
            return planned, True
        looked_at += len(videos)
        ids = [video.video_id for video in videos]
        todo = {row.video_id: row for row in lacking(session, switch.kind, old, new, ids)}
        for video in videos:
            switch.seen_until, switch.seen_video = video.indexed_at, video.video_id
            row = todo.get(video.video_id)
            if row is None:
                continue
            for first in range(0, len(row.idxs), stage.batch):
                some = row.idxs[first : first + stage.batch]
                part += 1
                planned.append(
                    Job(
                        subject_kind="switch",
                        subject_id=str(switch.switch_id),
                        user_id=row.user_id,
                        lane=stage.lane,
                        run=switch.run,
                        stage=stage.name,
                        part=part,
                        priority=_PRIORITY,
                        max_failures=plan.max_failures,
                        model_id=new.model_id,
                        payload={"video_id": row.video_id, "first_idx": some[0], "last_idx": some[-1]},
                    )
                )
            if len(planned) >= most:
                return planned, False
    return planned, False


def open_switches(session: Session) -> list[str]:
    """Ids of the switches that may have something to plan."""
    return [
        str(found)
        for found in session.scalars(select(ModelSwitch.switch_id).where(ModelSwitch.state.in_(_BOTH)))
    ]


def progress(session: Session, switch: ModelSwitch) -> Progress:
    failed = session.execute(
        select(func.count().label("jobs"), func.min(Job.error).label("error")).where(
            *_own(switch), Job.state == "failed"
        )
    ).one()
    lately = session.execute(
        select(
            func.sum(Job.result["scenes"].as_integer()).label("scenes"),
            func.extract("epoch", NOW - func.min(Job.started_at)).label("seconds"),
        ).where(*_own(switch), Job.state == "done", Job.finished_at > NOW - timedelta(seconds=_SPEED_S))
    ).one()
    speed = float(lately.scenes) / float(lately.seconds) if lately.scenes and lately.seconds else None
    return Progress(failed.jobs, failed.error, speed)


def retry(session: Session, switch: ModelSwitch) -> list[Bell]:
    """Try the jobs again that were given up."""
    again = session.execute(
        update(Job)
        .where(*_own(switch), Job.state == "failed")
        .values(
            state="queued",
            failures=0,
            outages=0,
            not_before=NOW,
            error_class=None,
            error=None,
            finished_at=None,
        )
        .returning(Job.lane, Job.job_id)
    ).all()
    return [Bell(row.lane, row.job_id) for row in again]


def point(session: Session, switch: ModelSwitch, to: Literal["old", "new"]) -> bool:
    """Let the new model (or the old one again) be the one that is searched. Returns whether that is a change.

    Raises:
        Conflict: the new one's vectors are not complete, or one of both is being dropped.
    """
    wanted = "flipped" if to == "new" else "ready"
    if switch.state == wanted or (to == "old" and switch.state == "building"):
        return False
    if switch.state not in ("ready", "flipped"):
        _, new = models_of(session, switch)
        raise Conflict(
            f"the switch of the {switch.kind} model to {new.name} is {switch.state}: it can't be flipped"
        )
    model_id = switch.to_model if to == "new" else switch.from_model
    _let_be_active(session, switch.kind, model_id)
    switch.state, switch.flipped_at = wanted, NOW
    session.flush()
    return True


def drop(session: Session, switch: ModelSwitch, plan: Plan, *, pages_s: float) -> list[Bell]:
    """Remove the vectors of the model that is not searched, in a job, and end the switch.

    ``pages_s``: for so long after a flip a search from before it may still ask for its next page.

    Raises:
        Conflict: the last flip is younger than that, or scenes have vectors of the losing model only.
    """
    if switch.state == "dropping":
        return []
    if switch.flipped_at is not None:
        session.refresh(switch)
        age_s = session.execute(select(func.extract("epoch", NOW - switch.flipped_at))).scalar_one()
        if age_s < pages_s:
            raise Conflict(
                f"the {switch.kind} model was flipped {age_s:.0f} s ago, and searches from before that may still turn"
                f" pages: drop in {pages_s - float(age_s):.0f} s, or with --now"
            )
    if switch.state == "flipped":
        _refuse_to_lose(session, switch, plan)
    loser = switch.from_model if switch.state == "flipped" else switch.to_model
    session.execute(
        update(Job)
        .where(*_own(switch), Job.state.in_(("queued", "running")))
        .values(state="cancelled", finished_at=NOW)
    )
    switch.run += 1
    switch.state = "dropping"
    session.flush()
    return jobs.insert(
        session,
        [
            Job(
                subject_kind="switch",
                subject_id=str(switch.switch_id),
                user_id="",
                lane=graph.DROP.lane,
                run=switch.run,
                stage=graph.DROP.name,
                max_failures=plan.max_failures,
                model_id=loser,
                payload={"model_id": loser},
            )
        ],
    )


def _refuse_to_lose(session: Session, switch: ModelSwitch, plan: Plan) -> None:
    """Make sure that nothing has a vector of the old model alone: videos may come late, or be in work since before the switch.

    Raises:
        Conflict: something has.
    """
    advance(session, switch, plan)
    left = session.execute(
        select(func.count()).where(*_own(switch), Job.state.in_(("queued", "running", "failed")))
    ).scalar_one()
    old, new = models_of(session, switch)
    if left:
        raise Conflict(
            f"{left} parts of the archive have no vectors of {new.name} yet: drop when they are done (--retry tries again"
            " what failed)"
        )
    has = "SELECT 1 FROM embeddings e WHERE e.scene_id = s.scene_id AND e.run = r.run AND e.model_id = {}"
    video_id = session.execute(
        text(
            "SELECT r.video_id FROM runs r JOIN videos v ON v.video_id = r.video_id AND v.run = r.run"
            " JOIN scenes s ON s.video_id = r.video_id WHERE r.ended_at IS NULL AND v.deleted_at IS NULL"
            f" AND EXISTS ({has.format(int(old.model_id))}) AND NOT EXISTS ({has.format(int(new.model_id))}) LIMIT 1"
        )
    ).scalar()
    if video_id is not None:
        raise Conflict(
            f"video {video_id} is in work since before the switch and has vectors of {old.name} only: drop when it has ended,"
            " or cancel it"
        )


def samples(session: Session, user_id: str, kind: str, count: int) -> tuple[list[str], list[str], int]:
    """Some published scenes of a user: what is said in them, their keyframes' keys, how many; always the same ones."""
    wanted = Scene.transcript != "" if kind == "text" else func.jsonb_array_length(Scene.keyframes) > 0
    scenes = session.scalars(
        select(Scene)
        .where(Scene.user_id == user_id, Scene.live, wanted)
        .order_by(func.md5(cast(Scene.scene_id, Text)))
        .limit(count)
    ).all()
    texts = [scene.transcript[:_SAMPLE_CHARS] for scene in scenes if scene.transcript]
    return texts, [keyframe["key"] for scene in scenes for keyframe in scene.keyframes], len(scenes)


def drop_some(session: Session, model_id: int, user_id: str, most: int) -> int:
    """Remove up to ``most`` of a user's vectors (and word weights) of a model. Returns how many."""
    removed = 0
    for table in ("embeddings", "lexical_weights"):
        done = session.execute(
            text(
                f"DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table}"
                " WHERE user_id = :user_id AND model_id = :model_id LIMIT :most))"
            ),
            {"user_id": user_id, "model_id": model_id, "most": most},
        )
        removed += done.rowcount  # type: ignore[attr-defined]
    return removed


def end(session: Session, switch_id: str, but: int) -> None:
    """The vectors are dropped: the switch is over, and of its jobs only the last one is kept."""
    switch = session.get_one(ModelSwitch, int(switch_id))
    switch.state, switch.ended_at = "ended", NOW
    session.execute(
        delete(Job).where(Job.subject_kind == "switch", Job.subject_id == switch_id, Job.job_id != but)
    )
    session.flush()
