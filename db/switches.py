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
_VIDEOS_AT_ONCE = 200
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
    """The id of the model a switch has to do with that is searched now; None: there never was a switch."""
    pointed = session.scalars(select(ActiveModel.model_id).where(ActiveModel.kind == kind)).one_or_none()
    if pointed is not None:
        return pointed
    return session.scalars(
        select(ModelSwitch.from_model).where(ModelSwitch.kind == kind, ModelSwitch.state.in_(_BOTH))
    ).one_or_none()


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
    """Start giving the archive vectors of the model ``new``; sent again, it changes nothing. ``active``: searched now.

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
    return advance(session, switch, plan)


def count(session: Session, kind: str, model: ModelRow) -> int:
    """How many published scenes have a vector of a model."""
    statement = text(
        f"SELECT count(DISTINCT s.scene_id) FROM embeddings e JOIN scenes s USING (scene_id)"
        f" WHERE e.model_id = {int(model.model_id)} AND e.run = s.{_run(kind)} AND s.live"
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
    """Published scenes of these videos that have a vector of ``old`` and none of ``new``: video_id, user_id, idxs."""
    run = f"s.{_run(kind)}"
    has = (
        "EXISTS (SELECT 1 FROM embeddings e WHERE e.scene_id = s.scene_id AND e.model_id = {} AND e.run = {})"
    )
    return list(
        session.execute(
            text(
                "SELECT s.video_id, s.user_id, array_agg(s.idx ORDER BY s.idx) AS idxs FROM scenes s"
                f" WHERE s.video_id = ANY(:videos) AND s.live AND {has.format(int(old.model_id), run)}"
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
    planned = _plan_more(session, switch, plan, _WINDOW - live)
    if not planned and not live and not states.get("failed"):
        _look_again(session, switch)
        planned = _plan_more(session, switch, plan, _WINDOW)
        if not planned and switch.state == "building":
            switch.state, switch.ready_at = "ready", NOW
    session.flush()
    return jobs.insert(session, planned)


def _own(switch: ModelSwitch) -> tuple[Any, ...]:
    return (
        Job.subject_kind == "switch",
        Job.subject_id == str(switch.switch_id),
        Job.run == switch.run,
    )


def _look_again(session: Session, switch: ModelSwitch) -> None:
    """Videos that were indexed lately may have come into sight behind the place that was reached."""
    now: datetime = session.execute(select(NOW)).scalar_one()
    if switch.seen_until is not None and switch.seen_until > now - _LATE:
        switch.seen_until, switch.seen_video = now - _LATE, ""


def _plan_more(session: Session, switch: ModelSwitch, plan: Plan, most: int) -> list[Job]:
    """Jobs for the videos behind the place that was reached, about ``most`` of them; moves the place on."""
    old, new = models_of(session, switch)
    stage = stage_of(switch.kind)
    part = session.execute(select(func.coalesce(func.max(Job.part), -1)).where(*_own(switch))).scalar_one()
    planned: list[Job] = []
    while len(planned) < most:
        videos = session.execute(
            text(
                "SELECT video_id, indexed_at FROM videos WHERE indexed_at IS NOT NULL AND deleted_at IS NULL"
                " AND (CAST(:until AS timestamptz) IS NULL OR (indexed_at, video_id) > (CAST(:until AS timestamptz), :video))"
                " ORDER BY indexed_at, video_id LIMIT :count"
            ),
            {"until": switch.seen_until, "video": switch.seen_video, "count": _VIDEOS_AT_ONCE},
        ).all()
        if not videos:
            break
        for row in lacking(session, switch.kind, old, new, [video.video_id for video in videos]):
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
        switch.seen_until, switch.seen_video = videos[-1].indexed_at, videos[-1].video_id
    return planned


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
    session.execute(
        insert(ActiveModel)
        .values(kind=switch.kind, model_id=model_id)
        .on_conflict_do_update(index_elements=["kind"], set_={"model_id": model_id, "changed_at": NOW})
    )
    switch.state, switch.flipped_at = wanted, NOW
    session.flush()
    return True


def drop(session: Session, switch: ModelSwitch, plan: Plan, *, pages_s: float) -> list[Bell]:
    """Remove the vectors of the model that is not searched, in a job, and end the switch.

    ``pages_s``: for so long after a flip a search from before it may still ask for its next page.

    Raises:
        Conflict: the last flip is younger than that.
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
