"""text_reembed, vision_reembed: give some published scenes vectors of the model that a switch goes to."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Literal

from sqlalchemy.orm import Session

from db.active_models import kept_models
from db.engine import reading
from db.ledger import subjects
from db.ledger.switch_runs import lacking
from db.scenes import published_scenes
from db.tables import Scene
from shared import graph
from shared.errors import LeaseLost
from worker.stages import text, vision
from worker.stages.context import Outcome, StageContext
from worker.stages.vectors import Made


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    kind: Literal["text", "vision"] = "text" if claimed.stage == graph.TEXT_REEMBED.name else "vision"
    video_id = str(claimed.payload["video_id"])
    place = (video_id, claimed.user_id, int(claimed.payload["first_idx"]), int(claimed.payload["last_idx"]))

    run_of: Callable[[Scene], int | None] = attrgetter(f"{kind}_run")
    with reading() as session:
        kept = kept_models(session, kind)
        if not kept:
            raise LeaseLost(f"switch {claimed.subject.id} is over")
        old, new = kept
        todo = {idx for row in lacking(session, kind, old, new, [video_id]) for idx in row.idxs}
        scenes = [scene for scene in published_scenes(session, *place) if scene.idx in todo]
    if not scenes:
        return Outcome(result={"scenes": 0})
    made = _embed(context, kind, new.name, scenes)
    found_in = {scene.scene_id: run_of(scene) for scene in scenes}

    def write(session: Session) -> None:
        video = subjects.lock_video(session, video_id)
        # Locked already, by the end of the job: before the video, as everywhere.
        switch = subjects.lock_switch(session, claimed.subject.id)
        if video is None or video.deleted_at is not None or switch is None:
            return
        # What was published again meanwhile is looked at again: it was indexed later than where the switch has come to.
        found = published_scenes(session, *place)
        same = [scene for scene in found if found_in.get(scene.scene_id) == run_of(scene)]
        for run in {run_of(scene) for scene in same} - {None}:
            made.write(session, int(run or 0), [scene.scene_id for scene in same if run_of(scene) == run])
        switch.done += len(same)

    return Outcome(result={"scenes": len(scenes)}, write=write)


def _embed(context: StageContext, kind: str, name: str, scenes: list[Scene]) -> Made:
    # The index went if vectors of this model were dropped before: made sure of each time.
    if kind == "text":
        texts = {scene.scene_id: scene.transcript for scene in scenes}
        return text.embed(context, name, texts, again=True)
    pictures = vision.read_keyframes(context, scenes)
    return vision.embed(context, name, scenes, pictures, again=True)[1]
