"""Switches of models: begin one, activate the new or the old model, discard the other.

While a switch is open, stages write vectors of both models, so either can be activated at any time without a loss. Jobs
(``db.ledger.switch_runs``) go through the videos in the order in which they were indexed, and create the vectors that
the new model lacks. Locks: the switch's row first, then a video's; a transaction that holds a video's row and reads which
models are kept (``db.active_models``) locks the switch's row FOR KEY SHARE only, for which no end of a job waits.
"""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import Text, cast, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.active_models import KEPT, active_models, models_of
from db.expressions import NOW, seconds_from_now
from db.ledger import jobs
from db.ledger.jobs import WakeUp, jobs_of, make_job, run_jobs
from db.ledger.policy import RunPolicy
from db.ledger.switch_runs import advance, count
from db.locks import AdvisoryLock
from db.tables import LIVE, ActiveModel, Job, JobState, ModelSwitch, Scene
from db.vectors import ModelRow
from shared import graph
from shared.errors import Conflict, NotFound

#: Maximum characters of a scene's transcript: enough to test a model, few enough for a message.
_SAMPLE_CHARS = 500
#: Delay before discarding begins: processes that have not noticed an activation yet, and running searches, use the old vectors.
_SETTLE_S = 5.0


def find(session: Session, kind: str, *, lock: bool = False) -> ModelSwitch | None:
    """The open switch of a kind."""
    query = select(ModelSwitch).where(ModelSwitch.kind == kind, ModelSwitch.state != "ended")
    if lock:
        query = query.with_for_update()
    return session.scalars(query, execution_options={"populate_existing": True}).one_or_none()


def newest(session: Session, kind: str) -> ModelSwitch | None:
    """The open switch of a kind, or the last one that ended; locked."""
    query = (
        select(ModelSwitch).where(ModelSwitch.kind == kind).order_by(ModelSwitch.switch_id.desc()).limit(1)
    )
    return session.scalars(query.with_for_update(key_share=True)).first()


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
    session: Session, kind: str, active: ModelRow, new: ModelRow, policy: RunPolicy, *, dry_run: bool = False
) -> list[WakeUp]:
    """Begin a switch to the model ``new``; repeating it changes nothing.

    ``active``: the active model, unless a switch has chosen another one, which the caller may not know yet.

    Raises:
        Conflict: ``new`` is active already, or a switch to another model is open.
    """
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": AdvisoryLock.OPEN_SWITCH.value})
    switch = find(session, kind, lock=True)
    if switch is not None:
        _, other = models_of(session, switch)
        if other.model_id != new.model_id or switch.state not in KEPT:
            raise Conflict(
                f"a switch of the {kind} model to {other.name} is {switch.state}: end it first, with --discard"
            )
        return [] if dry_run else advance(session, switch, policy)
    active = active_models(session).get(kind, active)
    if active.model_id == new.model_id:
        raise Conflict(f"{new.name} is the active {kind} model already: there is nothing to switch")
    if dry_run:
        return []
    total = count(session, kind, active)
    switch = ModelSwitch(kind=kind, from_model=active.model_id, to_model=new.model_id, total=total)
    session.add(switch)
    session.flush()
    # Set now: changing a setting meanwhile would make searches use incomplete vectors.
    _let_be_active(session, kind, active.model_id)
    return advance(session, switch, policy)


def _let_be_active(session: Session, kind: str, model_id: int) -> None:
    session.execute(
        insert(ActiveModel)
        .values(kind=kind, model_id=model_id)
        .on_conflict_do_update(index_elements=["kind"], set_={"model_id": model_id, "changed_at": NOW})
    )


def point(session: Session, switch: ModelSwitch, to: Literal["old", "new"]) -> bool:
    """Activate the new model (or the old one again). Returns whether this is a change.

    Raises:
        Conflict: the vectors of the new model are not complete, or one model is being discarded.
    """
    wanted = "activated" if to == "new" else "ready"
    if switch.state == wanted or (to == "old" and switch.state == "building"):
        return False
    if switch.state not in ("ready", "activated"):
        _, new = models_of(session, switch)
        raise Conflict(
            f"the switch of the {switch.kind} model to {new.name} is {switch.state}: it can't be activated"
        )
    model_id = switch.to_model if to == "new" else switch.from_model
    _let_be_active(session, switch.kind, model_id)
    switch.state, switch.activated_at = wanted, NOW
    session.flush()
    return True


def discard(session: Session, switch: ModelSwitch, policy: RunPolicy, *, pages_s: float) -> list[WakeUp]:
    """Remove the vectors of the model that is not searched, in a job, and end the switch.

    ``pages_s``: how long after an activation an older search may still request its next page.

    Raises:
        Conflict: the last activation is younger than that, or scenes have vectors of that model only.
    """
    if switch.state == "discarding":
        return []
    if switch.activated_at is not None:
        session.refresh(switch)
        age_s = session.execute(select(func.extract("epoch", NOW - switch.activated_at))).scalar_one()
        if age_s < pages_s:
            raise Conflict(
                f"the {switch.kind} model was activated {age_s:.0f} s ago, and searches from before may still request further"
                f" pages: discard in {pages_s - float(age_s):.0f} s, or with --now"
            )
    if switch.state == "activated":
        _refuse_to_lose(session, switch, policy)
    loser = switch.from_model if switch.state == "activated" else switch.to_model
    jobs.cancel(session, run_jobs(switch))
    # Of its index: a build that waited would end after it was dropped.
    jobs.cancel(session, Job.subject_kind == "model", Job.subject_id == str(loser))
    switch.run += 1
    switch.state = "discarding"
    session.flush()
    own: dict[str, Any] = {"user_id": "", "model_id": loser, "payload": {"model_id": loser}}
    later = seconds_from_now(_SETTLE_S)
    return jobs.insert(session, [make_job(switch, graph.DISCARD, policy, not_before=later, **own)])


def _refuse_to_lose(session: Session, switch: ModelSwitch, policy: RunPolicy) -> None:
    """Check that no scene has a vector of the old model alone; a video may be in progress since before the switch.

    Raises:
        Conflict: a scene has.
    """
    advance(session, switch, policy)
    unfinished = Job.state.in_((*LIVE, JobState.FAILED))
    left = session.scalar(select(func.count()).where(run_jobs(switch), unfinished))
    old, new = models_of(session, switch)
    if left:
        raise Conflict(
            f"{left} parts of the archive have no vectors of {new.name} yet: discard when they are done (--retry tries again"
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
            f"video {video_id} is in progress since before the switch and has vectors of {old.name} only: discard when it has ended,"
            " or cancel it (the id is that of the logs)"
        )


def samples(session: Session, user_id: str, kind: str, count: int) -> tuple[list[str], list[str], int]:
    """Choose published scenes of a user: transcripts, keyframe keys, number; always the same ones."""
    wanted = Scene.transcript != "" if kind == "text" else func.jsonb_array_length(Scene.keyframes) > 0
    scenes = session.scalars(
        select(Scene)
        .where(Scene.user_id == user_id, Scene.live, wanted)
        .order_by(func.md5(cast(Scene.scene_id, Text)))
        .limit(count)
    ).all()
    texts = [scene.transcript[:_SAMPLE_CHARS] for scene in scenes if scene.transcript]
    return texts, [keyframe["key"] for scene in scenes for keyframe in scene.keyframes], len(scenes)


def discard_some(session: Session, model_id: int, user_id: str, most: int) -> int:
    """Delete up to ``most`` of a user's vectors (and lexical weights) of a model. Returns the number."""
    removed = 0
    for table in ("embeddings", "lexical_weights"):
        statement = text(
            f"DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table}"
            " WHERE user_id = :user_id AND model_id = :model_id LIMIT :most))"
        )
        done = session.execute(statement, {"user_id": user_id, "model_id": model_id, "most": most})
        removed += done.rowcount  # type: ignore[attr-defined]
    return removed


def end(session: Session, switch_id: str, but: int) -> None:
    """End the switch after its vectors are deleted; of its jobs only the last one is kept."""
    switch = session.get_one(ModelSwitch, int(switch_id))
    switch.state, switch.ended_at = "ended", NOW
    session.execute(delete(Job).where(jobs_of(switch), Job.job_id != but))
    session.flush()
