"""vision: one vector per keyframe, and what the scene's pictures show, of a list of labels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from db.engine import get_engine, reading, transact
from db.scenes import scenes_between, write_tags
from db.tables import Scene
from db.vectors import ensure_index, write_embeddings
from worker.models.vision import VisionEmbedder
from worker.stages.context import Deferred, Outcome, StageContext, model_row

#: Most tags of one scene, the likeliest.
MAX_TAGS = 16
#: The sentence the model was compared with when it was published.
_PROMPT = "This is a photo of {}."
#: Labels embedded between two signs of life: on two CPUs the large model needs half a minute for them.
_LABELS_AT_ONCE = 32
#: After so long with labels a job is put back, and goes on with them later.
LABELS_LIMIT_S = 150.0
#: Keyframes fetched and decoded side by side: a GPU computes them faster than a storage answers one after the other.
_READERS = 8

#: Models whose index this process has made sure of.
_indexed: set[int] = set()
#: Model's name and revision, labels -> vectors of the labels [L, dim]. A process has one list, and seldom two models.
_label_vectors: dict[tuple[str, str, tuple[str, ...]], list[NDArray[np.float32]]] = {}


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    first, last = int(claimed.payload["first_idx"]), int(claimed.payload["last_idx"])
    with reading() as session:
        _, video_run = context.video_and_run(session)
        scenes = scenes_between(session, claimed.video_id, int(video_run.made["split"]), first, last)
    scene_ids = [scene.scene_id for scene in scenes]
    labels = context.runtime.labels
    model = cast(VisionEmbedder, context.runtime.shelf.get("vision"))
    row = transact(lambda session: model_row(session, model.spec))
    if row.model_id not in _indexed:
        ensure_index(get_engine(), row)
        _indexed.add(row.model_id)
    label_vectors = _embed_labels(context, model, labels)
    keyframes = [(scene.scene_id, keyframe) for scene in scenes for keyframe in scene.keyframes]
    vectors = model.embed_images(_read(context, [keyframe["key"] for _, keyframe in keyframes]))
    context.report(0.9)
    likely = model.match(vectors, label_vectors)
    tags = _choose_tags(scenes, labels, likely, model.tag_threshold)

    def write(session: Session) -> None:
        rows: list[tuple[UUID, int, Any]] = [
            (scene_id, keyframe["ordinal"], vector)
            for (scene_id, keyframe), vector in zip(keyframes, vectors, strict=True)
        ]
        write_embeddings(session, row, claimed.run, claimed.user_id, scene_ids, rows)
        write_tags(session, row.model_id, claimed.run, claimed.user_id, scene_ids, tags)

    return Outcome(
        result={"keyframes": len(keyframes), "scenes": len(scenes), "tagged": len(tags)}, write=write
    )


def _embed_labels(
    context: StageContext, model: VisionEmbedder, labels: tuple[str, ...]
) -> NDArray[np.float32]:
    """float32 [L, dim]; computed once per process, model and list.

    Raises:
        Deferred: it takes long, and the job's time has to do for its keyframes too; what is done is kept.
    """
    parts = _label_vectors.setdefault((model.spec.name, model.spec.revision, labels), [])
    began_s = time.monotonic()
    while (done := sum(map(len, parts))) < len(labels):
        context.report(0.1 * done / len(labels))
        if time.monotonic() - began_s > LABELS_LIMIT_S:
            raise Deferred(1.0)
        some = labels[done : done + _LABELS_AT_ONCE]
        parts.append(model.embed_texts([_PROMPT.format(label) for label in some]))
    return np.concatenate(parts)


def _read(context: StageContext, keys: Sequence[str]) -> list[NDArray[np.uint8]]:
    pictures = []
    with ThreadPoolExecutor(_READERS, "keyframes") as pool:
        for picture in pool.map(context.read_keyframe, keys):
            pictures.append(picture)
            context.report(0.1 + 0.4 * len(pictures) / len(keys))
    return pictures


def _choose_tags(
    scenes: Sequence[Scene], labels: Sequence[str], likely: NDArray[np.float32], threshold: float
) -> dict[UUID, dict[str, float]]:
    """Scene -> label -> how likely, the best of its keyframes. ``likely``: float32 [keyframes of all scenes, L]."""
    tags: dict[UUID, dict[str, float]] = {}
    place = 0
    for scene in scenes:
        own = likely[place : place + len(scene.keyframes)]
        place += len(own)
        if not len(own):
            continue
        best = own.max(axis=0)
        order = np.argsort(-best, kind="stable")[:MAX_TAGS]
        found = {labels[index]: round(float(best[index]), 4) for index in order if best[index] >= threshold}
        if found:
            tags[scene.scene_id] = found
    return tags
