"""sidecar: one JSON document per scene, then the transaction that publishes the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.faces.tracks import PersonInScene, people_in, refresh_scene_people
from db.ledger.stage_states import StageState, stage_states
from db.scenes import (
    Words,
    asr_model,
    drop_unpublished,
    embedded,
    faces_of,
    publish_scene,
    scene_count,
    scenes_between,
    screen_texts_of,
    tags_of,
    words_of,
)
from db.tables import Face, Model, Run, Scene, ScreenText, Video
from db.videos import next_revision
from shared import graph
from shared.contracts import Segment
from shared.plugins import find_function
from shared.sidecar import (
    SCHEMA_VERSION,
    EmbeddingRef,
    Embeddings,
    Face as SidecarFace,
    Keyframe,
    Metadata,
    ModelRef,
    Person,
    ScreenText as SidecarScreenText,
    Sidecar,
    Sighting,
    Transcript,
    to_bytes,
)
from shared.storage import sidecar_key
from worker.stages.context import Outcome, StageContext

_BATCH = 64


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    revision = transact(lambda session: next_revision(session, claimed.video_id))
    with reading() as session:
        _, video_run = context.video_and_run(session)
        count = scene_count(session, claimed.video_id, int(video_run.stage_runs["split"]))
    stage_runs = {name: int(made_by) for name, made_by in video_run.stage_runs.items()}
    keys: dict[UUID, str] = {}
    people: dict[UUID, list[PersonInScene]] = {}
    for first in range(0, count, _BATCH):
        with reading() as session:
            video, video_run = context.video_and_run(session)
            documents = make_documents(session, video, video_run, first, first + _BATCH - 1)
        for document in documents:
            key = sidecar_key(claimed.user_id, context.video_name, document.scene_id, revision)
            context.stored.append(("sidecars", key))
            context.storage.put_bytes("sidecars", key, to_bytes(document), "application/json")
            keys[UUID(document.scene_id)] = key
            people[UUID(document.scene_id)] = seen_in(document)
        context.report(min(1.0, (first + _BATCH) / count))

    def write(session: Session) -> None:
        for scenes, words, shown in _batches(session, claimed.video_id, stage_runs, count):
            for scene in scenes:
                screen_text = "\n".join(line.text for line in shown.get(scene.scene_id, []))
                publish_scene(
                    session,
                    scene.scene_id,
                    words.get(scene.scene_id, Words()),
                    keys[scene.scene_id],
                    stage_runs,
                    screen_text,
                )
            # Whoever was named since the documents were written is in the next revision (stage revise).
            refresh_scene_people(session, [scene.scene_id for scene in scenes], people)
        drop_unpublished(session, claimed.video_id, stage_runs)

    return Outcome(result={"sidecars": len(keys), "revision": revision}, write=write)


def _batches(
    session: Session, video_id: str, stage_runs: Mapping[str, int], count: int
) -> Iterator[tuple[list[Scene], dict[UUID, Words], dict[UUID, list[ScreenText]]]]:
    for first in range(0, count, _BATCH):
        scenes = scenes_between(session, video_id, stage_runs["split"], first, first + _BATCH - 1)
        shown = screen_texts_of(session, stage_runs.get("ocr"), [scene.scene_id for scene in scenes])
        yield scenes, words_of(session, video_id, stage_runs["asr"], scenes), shown


def seen_in(document: Sidecar) -> list[PersonInScene]:
    """The people a document names."""
    return [
        PersonInScene("", who.person_id, who.name, who.confidence, who.frame_count) for who in document.people
    ]


def make_documents(session: Session, video: Video, run: Run, first_idx: int, last_idx: int) -> list[Sidecar]:
    """The documents of the scenes first_idx..last_idx (inclusive), as this run has them."""
    stage_runs = {name: int(made_by) for name, made_by in run.stage_runs.items()}
    scenes = scenes_between(session, video.video_id, stage_runs["split"], first_idx, last_idx)
    ids = [scene.scene_id for scene in scenes]
    words = words_of(session, video.video_id, stage_runs["asr"], scenes)
    faces = faces_of(session, stage_runs["face"], ids)
    people = people_in(session, dict.fromkeys(ids, stage_runs["face"]))
    tags = tags_of(session, stage_runs["vision"], ids)
    # A run from before there was the stage has none.
    shown = screen_texts_of(session, stage_runs.get("ocr"), ids)
    said = _plugin_values(session, stage_runs, ids)
    models = {family: embedded(session, stage_runs[family], family, ids) for family in ("text", "vision")}
    names = {model.model_id: model.name for model in session.query(Model)}
    states = stage_states(session, video.video_id, run.run)
    heard_by = asr_model(session, video.video_id, stage_runs["asr"])
    created_at = run.created_at.astimezone(UTC).isoformat()
    return [
        _document(video.external_id, scene, words.get(scene.scene_id, Words()), faces.get(scene.scene_id, []),
                  people.get(scene.scene_id, []), tags.get(scene.scene_id, {}), shown.get(scene.scene_id, []),
                  said.get(scene.scene_id, {}), names, heard_by,
                  Embeddings(**{family: _reference(found.get(scene.scene_id), states.get(family))
                                for family, found in models.items()}),
                  Metadata(created_at=created_at, version=SCHEMA_VERSION,
                           processing_info={"run": run.run, "stage_runs": dict(sorted(stage_runs.items())),
                                            "stages": {name: states[name].state for name in sorted(states)
                                                       if name in stage_runs and name != graph.SIDECAR.name}}))
        for scene in scenes
    ]  # fmt: skip


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


def _document(
    video_id: str,
    scene: Scene,
    words: Words,
    faces: list[Face],
    people: list[PersonInScene],
    tags: Mapping[str, float],
    shown: list[ScreenText],
    plugins: Mapping[str, Any],
    names: Mapping[int, str],
    heard_by: Model | None,
    embeddings: Embeddings,
    metadata: Metadata,
) -> Sidecar:
    return Sidecar(
        video_id=video_id,
        scene_id=str(scene.scene_id),
        idx=scene.idx,
        start_s=scene.start_s,
        end_s=scene.end_s,
        duration_s=round(scene.end_s - scene.start_s, 6),
        kind=scene.kind,
        transcript=Transcript(
            text=words.text,
            segments=[Segment.model_validate(segment) for segment in words.segments],
            language=words.language,
            model=None if heard_by is None else ModelRef(name=heard_by.name, revision=heard_by.revision),
        ),
        embeddings=embeddings,
        keyframes=[Keyframe.model_validate(keyframe) for keyframe in scene.keyframes],
        vision_tags=dict(sorted(tags.items())),
        faces=[_face(face, names[face.model_id]) for face in faces],
        people=[
            Person(
                person_id=seen.external_id,
                name=seen.name,
                confidence=seen.confidence,
                frame_count=seen.frame_count,
            )
            for seen in people
        ],
        screen_texts=[_screen_text(line, names[line.model_id]) for line in shown],
        plugins=dict(plugins),
        metadata=metadata,
    )


def _face(face: Face, model: str) -> SidecarFace:
    return SidecarFace(
        face_id=str(face.face_id),
        keyframe=face.ordinal,
        ts_s=face.ts_s,
        box=face.box,
        landmarks=face.landmarks,
        det_score=face.det_score,
        quality=face.quality,
        track=face.track,
        model=model,
    )


def _screen_text(line: ScreenText, model: str) -> SidecarScreenText:
    return SidecarScreenText(
        text=line.text,
        score=line.score,
        sightings=[
            Sighting(keyframe=seen["ordinal"], ts_s=seen["ts_s"], box=seen["box"]) for seen in line.sightings
        ],
        model=model,
    )


def _reference(model: Model | None, stage: StageState | None) -> EmbeddingRef:
    reason: Any = None
    if stage is not None and not stage.has_outputs:
        reason = stage.error or stage.state
    if model is None:
        return EmbeddingRef(model=None, revision=None, dimensions=None, has_embedding=False, reason=reason)
    return EmbeddingRef(
        model=model.name, revision=model.revision, dimensions=model.dim, has_embedding=True, reason=reason
    )
