"""text: one vector per scene in which something is said, and the weights of its words where the model has them."""

from __future__ import annotations

from typing import cast

from sqlalchemy.orm import Session

from db.engine import get_engine, reading, transact
from db.scenes import scenes_between, words_of
from db.vectors import ensure_index, write_embeddings, write_lexical
from worker.models.text import TextEmbedder
from worker.stages.context import Outcome, StageContext, model_row

#: Models whose index this process has made sure of.
_indexed: set[int] = set()


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    first, last = int(claimed.payload["first_idx"]), int(claimed.payload["last_idx"])
    with reading() as session:
        _, video_run = context.video_and_run(session)
        scenes = scenes_between(session, claimed.video_id, int(video_run.made["split"]), first, last)
        words = words_of(session, claimed.video_id, int(video_run.made["asr"]), scenes)
    scene_ids = [scene.scene_id for scene in scenes]
    spoken = [scene_id for scene_id in scene_ids if scene_id in words and words[scene_id].text]
    model = cast(TextEmbedder, context.runtime.shelf.get("text"))
    row = transact(lambda session: model_row(session, model.spec))
    if row.model_id not in _indexed:
        ensure_index(get_engine(), row)
        _indexed.add(row.model_id)
    context.report(0.1)
    found = model.encode([words[scene_id].text for scene_id in spoken])
    vocabulary_size = model.vocabulary_size

    def write(session: Session) -> None:
        vectors = [(scene_id, 0, vector) for scene_id, vector in zip(spoken, found.dense, strict=True)]
        write_embeddings(session, row, claimed.run, claimed.user_id, scene_ids, vectors)
        if found.lexical is not None:
            weights = list(zip(spoken, found.lexical, strict=True))
            write_lexical(session, row, claimed.run, claimed.user_id, scene_ids, weights, vocabulary_size)

    return Outcome(result={"embedded": len(spoken), "scenes": len(scenes)}, write=write)
