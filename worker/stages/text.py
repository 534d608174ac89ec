"""text: one vector per scene in which something is said, and the weights of its words where the model has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast
from uuid import UUID

from sqlalchemy.orm import Session

from db.engine import reading
from db.scenes import words_of
from db.vectors import write_embeddings, write_lexical
from worker.models.text import TextEmbedder
from worker.stages.context import Outcome, StageContext
from worker.stages.vectors import Made, indexed_row, made_if_here, write_kept
from worker.telemetry.custom_events import embedding


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    with reading() as session:
        scenes = context.scenes(session)
        _, video_run = context.video_and_run(session)
        words = words_of(session, claimed.video_id, int(video_run.stage_runs["asr"]), scenes)
    scene_ids = [scene.scene_id for scene in scenes]
    texts = {scene: words[scene].text for scene in scene_ids if scene in words and words[scene].text}
    active, *others = context.runtime.active.written("text")
    made = [embed(context, active.name, texts)]
    for other in others:
        context.report(0.1)
        made += made_if_here(partial(embed, context, other.name, texts), other.name)

    def write(session: Session) -> None:
        write_kept(session, "text", made, claimed.run, scene_ids)

    return Outcome(result={"embedded": len(texts), "scenes": len(scenes)}, write=write)


def embed(context: StageContext, name: str, texts: Mapping[UUID, str], *, again: bool = False) -> Made:
    """What a model makes of what is said in some scenes. ``again``: see ``indexed_row``."""
    model = cast(TextEmbedder, context.runtime.model("text", name))
    row = indexed_row(context.runtime, model.spec, context.claimed.user_id, again=again)
    with embedding(model.spec.name, model.dim, len(texts), job_id=context.claimed.job_id):
        found = model.encode(list(texts.values()))
    vocabulary_size = model.vocabulary_size

    def write(session: Session, run: int, scene_ids: Sequence[UUID]) -> None:
        user_id = context.claimed.user_id
        asked = set(scene_ids)
        wanted = [(place, scene) for place, scene in enumerate(texts) if scene in asked]
        vectors = [(scene, 0, found.dense[place]) for place, scene in wanted]
        write_embeddings(session, row, run, user_id, scene_ids, vectors)
        if found.lexical is not None:
            weights = [(scene, found.lexical[place]) for place, scene in wanted]
            write_lexical(session, row, run, user_id, scene_ids, weights, vocabulary_size)

    return Made(row, write)
