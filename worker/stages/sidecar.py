"""sidecar: one JSON document per scene, then the transaction that publishes the run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.faces.tracks import PersonInScene, people_in
from db.ledger.stage_states import StageState, stage_states
from db.publication import SceneTexts, find_people, is_shown, prepare_scenes, show_scenes
from db.scenes import (
    Words,
    asr_model,
    embedded,
    faces_of,
    gaps_of,
    scene_count,
    scenes_between,
    screen_texts_of,
    tags_of,
    words_of,
)
from db.tables import Model, Run, ScreenText, Video
from db.videos import next_revision
from shared import graph
from shared.plugins import find_function
from shared.sidecar import (
    SCHEMA_VERSION,
    EmbeddingRef,
    Embeddings,
    Face,
    Metadata,
    ModelRef,
    Person,
    ScreenText as ShownText,
    Sidecar,
    Transcript,
    to_bytes,
)
from shared.storage import sidecar_key
from worker.stages.context import Outcome, StageContext

P = TypeVar("P", bound=BaseModel)

_BATCH = 64


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    revision = transact(lambda session: next_revision(session, claimed.video_id))
    with reading() as session:
        _, video_run = context.video_and_run(session)
        stage_runs = video_run.stage_runs
        count = scene_count(session, claimed.video_id, stage_runs["split"])
        shown = is_shown(session, claimed.video_id, stage_runs["split"])
    people: dict[UUID, list[PersonInScene]] = {}

    for first in range(0, count, _BATCH):
        with reading() as session:
            video, video_run = context.video_and_run(session)
            documents = make_documents(session, video, video_run, first, first + _BATCH - 1)
        found = []
        for document in documents:
            key = sidecar_key(claimed.user_id, context.video_name, document.scene_id, revision)
            context.stored.append(("sidecars", key))
            context.storage.put_bytes("sidecars", key, to_bytes(document), "application/json")
            found.append(_texts_of(document, key))
            people[UUID(document.scene_id)] = seen_in(document)
        context.write(lambda session, _: prepare_scenes(session, found, stage_runs, shown=shown))  # noqa: B023
        context.report(min(1.0, (first + _BATCH) / count))

    with reading() as session:
        to_show = find_people(session, claimed.video_id, claimed.user_id, stage_runs, people)

    def write(session: Session) -> None:
        show_scenes(session, claimed.video_id, claimed.user_id, stage_runs, people, to_show)

    return Outcome(result={"sidecars": len(people), "revision": revision}, write=write)


def seen_in(document: Sidecar) -> list[PersonInScene]:
    """The people a document names."""
    return [
        PersonInScene("", who.person_id, who.name, who.confidence, who.frame_count) for who in document.people
    ]


def _texts_of(document: Sidecar, key: str) -> SceneTexts:
    """What a document says that its scene's row says, too."""
    heard = document.transcript
    segments = [segment.model_dump(mode="json", exclude_unset=True) for segment in heard.segments]
    return SceneTexts(
        scene_id=UUID(document.scene_id),
        words=Words(heard.text, heard.language, segments),
        sidecar_key=key,
        screen_text="\n".join(line.text for line in document.screen_texts),
        gaps=document.not_looked_at,
    )


def make_documents(session: Session, video: Video, run: Run, first_idx: int, last_idx: int) -> list[Sidecar]:
    """The documents of the scenes first_idx..last_idx (inclusive), as this run has them."""
    stage_runs = run.stage_runs
    scenes = scenes_between(session, video.video_id, stage_runs["split"], first_idx, last_idx)
    ids = [scene.scene_id for scene in scenes]
    words = words_of(session, video.video_id, stage_runs["asr"], scenes)
    faces = faces_of(session, stage_runs["face"], ids)
    people = people_in(session, dict.fromkeys(ids, stage_runs["face"]))
    tags = tags_of(session, stage_runs["vision"], ids)
    # A run from before there was the stage has none.
    shown = screen_texts_of(session, stage_runs.get("ocr"), ids)
    gaps = gaps_of(session, video.video_id, stage_runs, scenes)
    said = _plugin_values(session, stage_runs, ids)
    models = {family: embedded(session, stage_runs[family], family, ids) for family in ("text", "vision")}
    names = {model.model_id: model.name for model in session.query(Model)}
    states = stage_states(session, video.video_id, run.run)
    heard_by = asr_model(session, video.video_id, stage_runs["asr"])
    shown_states = {
        name: states[name].state
        for name in sorted(states)
        if name in stage_runs and name not in (graph.SIDECAR.name, *graph.LATE)
    }
    metadata = Metadata(
        created_at=run.created_at.astimezone(UTC).isoformat(),
        version=SCHEMA_VERSION,
        processing_info={
            "run": run.run,
            "stage_runs": dict(sorted(stage_runs.items())),
            "stages": shown_states,
        },
    )
    documents = []
    for scene in scenes:
        scene_id = scene.scene_id
        heard = words.get(scene_id, Words())
        embeddings = {
            family: _reference(found.get(scene_id), states.get(family)) for family, found in models.items()
        }
        documents.append(
            _copy(
                Sidecar,
                scene,
                video_id=video.external_id,
                scene_id=str(scene_id),
                duration_s=round(scene.end_s - scene.start_s, 6),
                transcript=_copy(
                    Transcript, heard, model=None if heard_by is None else _copy(ModelRef, heard_by)
                ),
                embeddings=Embeddings(**embeddings),
                vision_tags=dict(sorted(tags.get(scene_id, {}).items())),
                faces=[
                    _copy(
                        Face,
                        face,
                        face_id=str(face.face_id),
                        keyframe=face.ordinal,
                        model=names[face.model_id],
                    )
                    for face in faces.get(scene_id, [])
                ],
                people=[_copy(Person, seen, person_id=seen.external_id) for seen in people.get(scene_id, [])],
                screen_texts=[
                    _copy(ShownText, line, sightings=_sightings(line), model=names[line.model_id])
                    for line in shown.get(scene_id, [])
                ],
                plugins=said.get(scene_id, {}),
                not_looked_at=gaps.get(scene_id, []),
                metadata=metadata,
            )
        )
    return documents


def _plugin_values(
    session: Session, stage_runs: Mapping[str, int], ids: list[UUID]
) -> dict[UUID, dict[str, Any]]:
    """What plug-ins say of scenes: scene -> plug-in -> JSON. A run from before a plug-in's stages has nothing of it."""
    found: dict[UUID, dict[str, Any]] = {}
    for plugin in graph.PLUGINS.plugins:
        if plugin.sidecar and any(stage.name in stage_runs for stage in plugin.stages):
            for scene, value in find_function(plugin.sidecar)(session, stage_runs, ids).items():
                found.setdefault(scene, {})[plugin.name] = value
    return found


def _copy(part: type[P], row: object, **others: Any) -> P:
    """Make a part of the document of the row's attributes of the same names, and of ``others``."""
    same = {name: getattr(row, name) for name in part.model_fields if name not in others}
    return part(**same, **others)


def _sightings(line: ScreenText) -> list[dict[str, Any]]:
    return [
        {"keyframe": seen["ordinal"], "ts_s": seen["ts_s"], "box": seen["box"]} for seen in line.sightings
    ]


def _reference(model: Model | None, stage: StageState | None) -> EmbeddingRef:
    reason: Any = None
    if stage is not None and not stage.has_outputs:
        reason = stage.error or stage.state
    return EmbeddingRef(
        model=model and model.name,
        revision=model and model.revision,
        dimensions=model and model.dim,
        has_embedding=model is not None,
        reason=reason,
    )
