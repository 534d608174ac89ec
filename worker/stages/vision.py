"""vision: one vector per keyframe, and what the scene's pictures show, of a list of labels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import cast
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from db.engine import reading
from db.scenes import write_tags
from db.tables import Scene
from db.vectors import write_embeddings
from worker.models.vision import VisionEmbedder
from worker.stages.context import Deferred, Outcome, StageContext
from worker.stages.vectors import Made, indexed_row, made_if_here, write_kept
from worker.telemetry.custom_events import embedding

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

#: Model's name and revision, labels -> vectors of the labels [L, dim]. A process has one list, and seldom two models.
_label_vectors: dict[tuple[str, str, tuple[str, ...]], list[NDArray[np.float32]]] = {}


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    with reading() as session:
        scenes = context.scenes(session)
    scene_ids = [scene.scene_id for scene in scenes]
    labels = context.runtime.labels
    active, *others = context.runtime.active.written("vision")
    model = cast(VisionEmbedder, context.runtime.model("vision", active.name))
    label_vectors = _embed_labels(context, model, labels)
    pictures = read_keyframes(context, scenes)
    vectors, first_made = embed(context, active.name, scenes, pictures)
    context.report(0.9)
    likely = model.match(vectors, label_vectors)
    tags = _choose_tags(scenes, labels, likely, model.tag_threshold)
    made = [first_made]
    for other in others:
        made += made_if_here(partial(_vectors_of, context, other.name, scenes, pictures), other.name)

    def write(session: Session) -> None:
        write_kept(session, "vision", made, claimed.run, scene_ids)
        write_tags(session, first_made.row.model_id, claimed.run, claimed.user_id, scene_ids, tags)

    result = {"keyframes": len(pictures), "scenes": len(scenes), "tagged": len(tags)}
    return Outcome(result=result, write=write)


def embed(
    context: StageContext,
    name: str,
    scenes: Sequence[Scene],
    pictures: Sequence[NDArray[np.uint8]],
    *,
    again: bool = False,
) -> tuple[NDArray[np.float32], Made]:
    """What a model makes of the pictures of some scenes (``read_keyframes``): its vectors [keyframes, dim], in order.

    ``again``: see ``indexed_row``.
    """
    model = cast(VisionEmbedder, context.runtime.model("vision", name))
    row = indexed_row(context.runtime, model.spec, context.claimed.user_id, again=again)
    with embedding(model.spec.name, model.dim, len(pictures), job_id=context.claimed.job_id):
        vectors = model.embed_images(pictures)
    places = [(scene.scene_id, int(keyframe["ordinal"])) for scene in scenes for keyframe in scene.keyframes]

    def write(session: Session, run: int, scene_ids: Sequence[UUID]) -> None:
        wanted = set(scene_ids)
        rows = [(*place, vector) for place, vector in zip(places, vectors, strict=True) if place[0] in wanted]
        write_embeddings(session, row, run, context.claimed.user_id, scene_ids, rows)

    return vectors, Made(row, write)


def _vectors_of(
    context: StageContext, name: str, scenes: Sequence[Scene], pictures: Sequence[NDArray[np.uint8]]
) -> Made:
    return embed(context, name, scenes, pictures)[1]


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
            raise Deferred(progressed=True)
        some = labels[done : done + _LABELS_AT_ONCE]
        parts.append(model.embed_texts([_PROMPT.format(label) for label in some]))
    return np.concatenate(parts)


def read_keyframes(context: StageContext, scenes: Sequence[Scene]) -> list[NDArray[np.uint8]]:
    """The keyframes of some scenes in order, uint8 [H, W, 3] RGB each."""
    keys = [keyframe["key"] for scene in scenes for keyframe in scene.keyframes]
    pictures: list[NDArray[np.uint8]] = []
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
