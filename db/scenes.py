"""Writes and reads the outputs of stages about a video."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import (
    ColumnElement,
    ColumnExpressionArgument,
    any_,
    delete,
    func,
    select,
)
from sqlalchemy.orm import Session

from db.active_models import searched_model
from db.expressions import uuids
from db.ledger.bisection import REASON
from db.ledger.stage_states import stage_states
from db.rows import by_scene, replace_rows
from db.tables import (
    Embedding,
    Face,
    FaceTrack,
    Job,
    Model,
    Scene,
    SceneTags,
    ScreenText,
    TranscriptPart,
    Video,
)
from db.videos import get
from shared import graph
from shared.contracts import NotLookedAt, ScenePage, SceneView
from shared.errors import Conflict

#: Namespace of scene ids: the same split of the same video gives the same ids.
NAMESPACE = UUID("6f2f1c52-5d0c-5d0a-9a4e-3f6a0e9d7c11")
_DROPPED_AT_ONCE = 1_000


def scene_id(video_id: str, split_version: int, idx: int) -> UUID:
    return uuid5(NAMESPACE, f"{video_id}/{split_version}/{idx}")


def face_id(scene: UUID, run: int, ordinal: int, place: int) -> UUID:
    return uuid5(scene, f"face/{run}/{ordinal}/{place}")


def write_scenes(
    session: Session, video_id: str, user_id: str, split_version: int, scenes: Sequence[Mapping[str, Any]]
) -> None:
    """Store the scenes of a split, each with idx, start_s, end_s, kind, cut_confidence, keyframes. Not live until published."""
    drop_scenes(session, video_id, split_version, 0)
    add_scenes(session, video_id, user_id, split_version, scenes)


def add_scenes(
    session: Session, video_id: str, user_id: str, split_version: int, scenes: Sequence[Mapping[str, Any]]
) -> None:
    """Store some more scenes of a split, as ``write_scenes`` does."""
    common = {"video_id": video_id, "user_id": user_id, "split_version": split_version}
    rows = [
        {"scene_id": scene_id(video_id, split_version, scene["idx"]), **common, **scene} for scene in scenes
    ]
    replace_rows(session, Scene, (Scene.scene_id.in_([row["scene_id"] for row in rows]),), rows)


def drop_scenes(session: Session, video_id: str, split_version: int, first_idx: int) -> None:
    """Delete the scenes of a split from this one on."""
    rest = (Scene.video_id == video_id, Scene.split_version == split_version, Scene.idx >= first_idx)
    session.execute(delete(Scene).where(*rest))


def drop_some_scenes(session: Session, video_id: str) -> bool:
    """Delete up to 1,000 scenes of a video, of any split, with what was found in them. Returns whether there were any."""
    some = session.scalars(select(Scene.scene_id).where(Scene.video_id == video_id).limit(_DROPPED_AT_ONCE))
    session.execute(delete(Scene).where(Scene.scene_id == any_(uuids(scene_ids := some.all()))))
    return bool(scene_ids)


def write_transcript(session: Session, **columns: Any) -> None:
    """Store the transcript of one window of audio (the columns of ``TranscriptPart``), in place of an earlier one."""
    session.merge(TranscriptPart(**columns))


def write_faces(
    session: Session, run: int, scene_ids: Sequence[UUID], faces: Sequence[Mapping[str, Any]]
) -> None:
    """Replace the faces this run found in these scenes."""
    replace_rows(session, Face, (Face.run == run, Face.scene_id.in_(scene_ids)), faces)


def write_tags(
    session: Session,
    model_id: int,
    run: int,
    user_id: str,
    scene_ids: Sequence[UUID],
    tags: Mapping[UUID, Mapping[str, float]],
) -> None:
    """Replace this run's tags of these scenes: scene -> label -> 0..1."""
    common = {"run": run, "user_id": user_id, "model_id": model_id}
    rows = [{**common, "scene_id": scene, "tags": dict(found)} for scene, found in tags.items()]
    replace_rows(session, SceneTags, (SceneTags.run == run, SceneTags.scene_id.in_(scene_ids)), rows)


def tags_of(session: Session, run: int, scene_ids: Sequence[UUID]) -> dict[UUID, dict[str, float]]:
    """The tags that a run found in these scenes; scenes without any are absent."""
    found = (SceneTags.run == run, SceneTags.scene_id.in_(scene_ids))
    rows = session.execute(select(SceneTags.scene_id, SceneTags.tags).where(*found))
    return {scene: dict(tags) for scene, tags in rows}


def write_screen_texts(
    session: Session,
    model_id: int,
    run: int,
    user_id: str,
    scene_ids: Sequence[UUID],
    lines: Mapping[UUID, Sequence[Mapping[str, Any]]],
) -> None:
    """Replace the lines this run read in these scenes: scene -> its lines in order, each text, score, sightings."""
    common = {"run": run, "user_id": user_id, "model_id": model_id}
    rows = [
        {**common, "scene_id": scene, "place": place, **line}
        for scene, found in lines.items()
        for place, line in enumerate(found)
    ]
    replace_rows(session, ScreenText, (ScreenText.run == run, ScreenText.scene_id.in_(scene_ids)), rows)


def screen_texts_of(
    session: Session, run: int | None, scene_ids: Sequence[UUID]
) -> dict[UUID, list[ScreenText]]:
    """The lines a run read, per scene, in their order; ``run`` None (a video from before the stage): none."""
    rows = session.scalars(
        select(ScreenText)
        .where(ScreenText.run == run, ScreenText.scene_id.in_(scene_ids))
        .order_by(ScreenText.scene_id, ScreenText.place)
    )
    return by_scene(rows)


@dataclass(frozen=True)
class Words:
    """The speech of one scene."""

    text: str = ""
    language: str | None = None
    #: All segments; a ``rejected`` one is not part of the text.
    segments: list[dict[str, Any]] = field(default_factory=list)


def scenes_between(
    session: Session, video_id: str, split_version: int, first_idx: int, last_idx: int
) -> list[Scene]:
    """The scenes first_idx..last_idx (inclusive) of a split, in order."""
    of_split = (Scene.video_id == video_id, Scene.split_version == split_version)
    return _between(session, first_idx, last_idx, *of_split)


def published_scenes(
    session: Session, video_id: str, user_id: str, first_idx: int, last_idx: int
) -> list[Scene]:
    """The scenes first_idx..last_idx (inclusive) that callers see, in order."""
    shown = (Scene.video_id == video_id, Scene.user_id == user_id, Scene.live)
    return _between(session, first_idx, last_idx, *shown)


def _between(
    session: Session, first_idx: int, last_idx: int, *which: ColumnExpressionArgument[bool]
) -> list[Scene]:
    query = select(Scene).where(*which, Scene.idx.between(first_idx, last_idx)).order_by(Scene.idx)
    return list(session.scalars(query))


def scene_count(session: Session, video_id: str, split_version: int) -> int:
    of_split = (Scene.video_id == video_id) & (Scene.split_version == split_version)
    return session.scalars(select(func.count()).where(of_split)).one()


def words_of(session: Session, video_id: str, asr_run: int, scenes: Sequence[Scene]) -> dict[UUID, Words]:
    """Assign every word to the scene that contains its middle; a segment across a cut is divided.

    ``scenes``: neighbours of one split, in order. Speech after the last picture belongs to the video's last scene.
    """
    if not scenes:
        return {}
    first, last = scenes[0], scenes[-1]
    is_end = not scenes_between(session, video_id, last.split_version, last.idx + 1, last.idx + 1)
    until_s = math.inf if is_end else last.end_s
    parts = session.scalars(
        select(TranscriptPart)
        .where(
            TranscriptPart.video_id == video_id,
            TranscriptPart.run == asr_run,
            TranscriptPart.start_s < until_s,
            TranscriptPart.end_s > first.start_s,
        )
        .order_by(TranscriptPart.start_s)
    )
    found: dict[UUID, Words] = {}
    for part in parts:
        for segment in part.segments:
            for scene, piece in _divide(segment, scenes, until_s):
                words = found.get(scene.scene_id, Words())
                joined = words.text if piece.get("rejected") else f"{words.text} {piece['text']}".strip()
                found[scene.scene_id] = Words(
                    joined, words.language or part.language, [*words.segments, piece]
                )
    return found


def _divide(
    segment: Mapping[str, Any], scenes: Sequence[Scene], until_s: float
) -> list[tuple[Scene, dict[str, Any]]]:
    words = segment["words"] or [segment]
    placed = [(scene, word) for word in words if (scene := _scene_at(scenes, word, until_s)) is not None]
    pieces = [(scene, [word for _, word in group]) for scene, group in groupby(placed, key=itemgetter(0))]
    if len(pieces) == 1 and len(placed) == len(words):
        return [(pieces[0][0], dict(segment))]
    return [
        (
            scene,
            {
                "start_s": group[0]["start_s"],
                "end_s": group[-1]["end_s"],
                "text": _said(segment["text"], group),
                "words": group,
                "rejected": segment.get("rejected"),
            },
        )
        for scene, group in pieces
    ]


def _said(text: str, words: Sequence[Mapping[str, Any]]) -> str:
    """The part of a segment's text that consists of these adjacent words, with spaces only as its language uses them."""
    own = [word["text"].strip() for word in words]
    spelled = re.search(r"\s*".join(map(re.escape, own)), text)
    return spelled[0] if spelled else " ".join(own)


def _scene_at(scenes: Sequence[Scene], word: Mapping[str, Any], until_s: float) -> Scene | None:
    """The scene that contains the middle of a word."""
    time_s = (word["start_s"] + word["end_s"]) / 2
    place = bisect_right(scenes, time_s, key=lambda scene: scene.start_s) - 1
    if place < 0:
        return None
    end_s = until_s if place == len(scenes) - 1 else scenes[place + 1].start_s
    return scenes[place] if time_s < end_s else None


def faces_of(session: Session, run: int, scene_ids: Sequence[UUID]) -> dict[UUID, list[Face]]:
    """The faces a run found, per scene, in a stable order."""
    rows = session.scalars(
        select(Face)
        .where(Face.run == run, Face.scene_id.in_(scene_ids))
        .order_by(Face.scene_id, Face.ordinal, Face.face_id)
    )
    return by_scene(rows)


def gaps_of(
    session: Session, video_id: str, stage_runs: Mapping[str, int], scenes: Sequence[Scene]
) -> dict[UUID, list[NotLookedAt]]:
    """What stages have left out of these scenes (db/ledger/bisection.py); scenes without any are absent."""
    rows = session.execute(
        select(Job.stage, Job.part, Job.run, Job.not_looked_at)
        .where(Job.video_id == video_id, Job.not_looked_at.is_not(None))
        .order_by(Job.stage, Job.part)
    )
    found: dict[UUID, list[NotLookedAt]] = {}
    for stage, _, run, gap in rows:
        # A run that reuses a stage has its number of items only.
        if stage_runs.get(stage) != run or set(gap) == {"items"}:
            continue
        details = {name: gap.get(name) for name in ("keyframes", "start_s", "end_s")}
        for scene in scenes:
            here = gap.get("first_idx", scene.idx) <= scene.idx <= gap.get("last_idx", scene.idx)
            heard = gap.get("start_s", 0.0) < scene.end_s and gap.get("end_s", math.inf) > scene.start_s
            if here and heard:
                left_out = NotLookedAt.model_validate(
                    {"stage": stage, "reason": REASON, **details}, strict=False
                )
                found.setdefault(scene.scene_id, []).append(left_out)
    return found


def embedded(session: Session, run: int, family: str, scene_ids: Sequence[UUID]) -> dict[UUID, Model]:
    """The scenes that have a vector of this family from this run, with its model: the active one, if possible."""
    searched = searched_model(session, family)
    rows = session.execute(
        select(Embedding.scene_id, Model)
        .join(Model, Model.model_id == Embedding.model_id)
        .where(Embedding.run == run, Model.family == family, Embedding.scene_id.in_(scene_ids))
        .distinct()
    )
    # Of several models the last one counts.
    ordered = sorted(rows, key=lambda row: (row[1].model_id == searched, row[1].model_id))
    return {row[0]: row[1] for row in ordered}


def asr_model(session: Session, video_id: str, run: int) -> Model | None:
    """The model that transcribed a run."""
    return session.scalars(
        select(Model)
        .join(TranscriptPart, TranscriptPart.model_id == Model.model_id)
        .where(TranscriptPart.video_id == video_id, TranscriptPart.run == run)
        .limit(1)
    ).one_or_none()


def page(session: Session, video_id: str, user_id: str, after_idx: int, limit: int) -> ScenePage:
    """The published scenes after ``after_idx``, in order.

    Raises:
        NotFound: no such video of this user.
    """
    video = get(session, video_id, user_id)
    rows = session.execute(
        select(Scene, _people_seen())
        .where(Scene.video_id == video.video_id, Scene.user_id == user_id, Scene.live, Scene.idx > after_idx)
        .order_by(Scene.idx)
        .limit(limit + 1)
    ).all()
    views = [
        SceneView(
            scene_id=str(scene.scene_id),
            video_id=video.external_id,
            idx=scene.idx,
            start_s=scene.start_s,
            end_s=scene.end_s,
            kind=scene.kind,
            cut_confidence=scene.cut_confidence,
            transcript=scene.transcript,
            language=scene.language,
            keyframe_keys=tuple(keyframe["key"] for keyframe in scene.keyframes),
            sidecar_key=scene.sidecar_key,
            faces=count,
            screen_text=scene.screen_text,
            not_looked_at=tuple(
                NotLookedAt.model_validate(gap, strict=False) for gap in scene.not_looked_at or ()
            ),
        )
        for scene, count in rows[:limit]
    ]
    next_after_idx = views[-1].idx if len(rows) > limit else None
    return ScenePage(video_id=video.external_id, scenes=tuple(views), next_after_idx=next_after_idx)


def _people_seen() -> ColumnElement[int]:
    """The number of people in a scene: a person in several keyframes or tracks counts once.

    A track without a person counts as one person, and so does a face from before faces were linked into tracks.
    """
    same = (
        (FaceTrack.scene_id == Face.scene_id) & (FaceTrack.run == Face.run) & (FaceTrack.track == Face.track)
    )
    unnamed = FaceTrack.person_id.is_(None)
    return (
        select(
            func.count(FaceTrack.person_id.distinct())
            + func.count(Face.track.distinct()).filter(unnamed)
            + func.count().filter(Face.track.is_(None))
        )
        .select_from(Face)
        .outerjoin(FaceTrack, same)
        .where(Face.scene_id == Scene.scene_id, Face.run == Scene.face_run)
        .scalar_subquery()
    )


def referenced_keys(session: Session, video_id: str, split_version: int | None) -> set[str]:
    """Storage keys that the video refers to: keyframes and current sidecars of one split or of all, sprites, rendition."""
    keys: set[str] = set()
    media, rendition = session.execute(
        select(Video.media, Video.rendition).where(Video.video_id == video_id)
    ).one()
    if sprites := (media or {}).get("sprites"):
        keys.update(sprites["prefix"] + name for name in (sprites["index"], *sprites["sheets"]))
    if rendition and rendition["key"]:
        keys.add(rendition["key"])
    scenes = select(Scene.keyframes, Scene.sidecar_key).where(Scene.video_id == video_id)
    if split_version is not None:
        scenes = scenes.where(Scene.split_version == split_version)
    for keyframes, sidecar_key in session.execute(scenes):
        keys.update(keyframe["key"] for keyframe in keyframes)
        if sidecar_key:
            keys.add(sidecar_key)
    return keys


def videos_in_work(session: Session, user_id: str) -> int:
    is_open = (Video.user_id == user_id) & Video.state.in_(("uploaded", "processing"))
    return session.scalars(select(func.count()).where(is_open)).one()


def published_speech(
    session: Session, video_id: str, user_id: str
) -> tuple[str | None, list[list[dict[str, Any]]]]:
    """The main language (None: no speech), and the segments of each scene, in order.

    Rejected segments are among them.

    Raises:
        NotFound: no such video of this user.
        Conflict: nothing of it is published, or its words are not known: that is not silence.
    """
    video = get(session, video_id, user_id)
    if video.published_run is None:
        raise Conflict(
            f"video {video_id} is {video.state} and has no published scenes: wait until it is indexed"
        )
    scenes = session.execute(
        select(Scene.language, Scene.segments)
        .where(Scene.video_id == video.video_id, Scene.user_id == user_id, Scene.live)
        .order_by(Scene.idx)
    ).all()
    languages: Counter[str] = Counter()
    for language, segments in scenes:
        believed = sum(len(segment["text"]) for segment in segments if not segment.get("rejected"))
        if language is not None and believed:
            languages[language] += believed
    if not any(segments for _, segments in scenes):
        heard = stage_states(session, video.video_id, video.published_run).get(graph.ASR.name)
        if heard is not None and not heard.has_outputs:
            reason = f" ({heard.error})" if heard.error else ""
            raise Conflict(
                f"the words of video {video_id} are not known, as asr {heard.state}{reason}: see its status"
            )
    return next(iter(languages.most_common(1)), (None, 0))[0], [segments for _, segments in scenes]
