"""Publishes what a run has found: prepared scene by scene, then shown by one short transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import (
    any_,
    column,
    delete,
    func,
    select,
    table,
    text,
    update,
)
from sqlalchemy.orm import Session

from db.expressions import uuids
from db.faces.tracks import (
    PeopleChanges,
    PersonInScene,
    ShownFaces,
    compare_people,
    scenes_with_people,
    show_people,
    versions_of_people,
)
from db.lexicons import WITHOUT_LANGUAGE, lexicon_of
from db.scenes import Words
from db.tables import Base, Embedding, Model, PreparedScene, Scene, TranscriptPart
from shared import graph
from shared.contracts import NotLookedAt

_SCENES, _PREPARED = (Base.metadata.tables[name] for name in ("scenes", "prepared_scenes"))


def _lexemes(lexicon: str, words: str) -> str:
    """The words of a text as they are, and as a language's configuration reduces them."""
    return f"to_tsvector({lexicon}, {words}) || to_tsvector('simple', {words})"


#: The columns of a scene that its publication sets, by one JSON document for many scenes. Postgres caps a tsvector at 1 MB; an hour of
#: speech has about 60 KB. On-screen text may be in another language than the speech.
_COLUMNS = {
    "transcript": "r.transcript",
    "segments": "r.segments",
    "language": "r.language",
    "tsv": _lexemes("r.lexicon", "left(r.transcript, 200000)"),
    "sidecar_key": "r.sidecar_key",
    "text_run": ":text_run",
    "vision_run": ":vision_run",
    "face_run": ":face_run",
    "screen_text": "r.screen_text",
    "screen_tsv": _lexemes("r.screen_lexicon", "r.screen_text"),
    "ocr_run": ":ocr_run",
    "not_looked_at": "r.not_looked_at",
}
_ROWS = (
    "jsonb_to_recordset(CAST(:rows AS jsonb)) AS r(scene_id uuid, transcript text, segments jsonb, language text,"
    " lexicon regconfig, sidecar_key text, screen_text text, screen_lexicon regconfig, not_looked_at jsonb)"
)
_PREPARE = text(
    f"UPDATE scenes s SET {', '.join(f'{name} = {value}' for name, value in _COLUMNS.items())} FROM {_ROWS}"
    " WHERE s.scene_id = r.scene_id"
)
_KEEP_APART = text(
    f"INSERT INTO prepared_scenes (scene_id, user_id, {', '.join(_COLUMNS)})"
    f" SELECT s.scene_id, s.user_id, {', '.join(_COLUMNS.values())} FROM {_ROWS} JOIN scenes s ON s.scene_id = r.scene_id"
    f" ON CONFLICT (scene_id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS)}"
)


#: In the transaction that shows many scenes, their words wait beside the index, which searches read too; ``index_words`` takes them in.
_INDEX_LATER = text("SET LOCAL gin_pending_list_limit = '1GB'")
_INDEX_WORDS = text(
    "SELECT gin_clean_pending_list('ix_scenes_tsv'), gin_clean_pending_list('ix_scenes_screen_tsv')"
)


@dataclass(frozen=True, kw_only=True)
class SceneTexts:
    """What a run has found about a scene, to be shown."""

    scene_id: UUID
    words: Words
    sidecar_key: str
    #: On-screen text, one line each.
    screen_text: str = ""
    #: What stages have left out.
    gaps: Sequence[NotLookedAt] = ()


def is_shown(session: Session, video_id: str, split_version: int) -> bool:
    """Whether callers see scenes of a split."""
    shown = (Scene.video_id == video_id, Scene.split_version == split_version, Scene.live)
    return session.scalars(select(Scene.scene_id).where(*shown).limit(1)).first() is not None


def prepare_scenes(
    session: Session, found: Sequence[SceneTexts], stage_runs: Mapping[str, int], *, shown: bool
) -> None:
    """Store what ``show_scenes`` will show; ``shown``: of scenes that callers see already, so that it stands apart until then."""
    rows = [
        {
            "scene_id": str(one.scene_id),
            "transcript": one.words.text.replace("\x00", ""),
            "segments": one.words.segments,
            "language": one.words.language,
            "lexicon": lexicon_of(one.words.language or ""),
            "sidecar_key": one.sidecar_key,
            "screen_text": one.screen_text.replace("\x00", ""),
            "screen_lexicon": lexicon_of(one.words.language) if one.words.language else WITHOUT_LANGUAGE,
            "not_looked_at": [gap.model_dump(mode="json") for gap in one.gaps] or None,
        }
        for one in found
    ]
    runs = {
        f"{stage.name}_run": stage_runs.get(stage.name)
        for stage in (graph.TEXT, graph.VISION, graph.FACE, graph.OCR)
    }
    session.execute(_KEEP_APART if shown else _PREPARE, {"rows": json.dumps(rows), **runs})


@dataclass(frozen=True)
class PeopleToShow:
    """What showing the people of a run will change."""

    #: Of the rows that say so: while they are the same, it is true.
    versions: tuple[Any, ...]
    changes: PeopleChanges
    #: Scenes whose sidecar names others.
    stale: list[UUID]


def find_people(
    session: Session,
    video_id: str,
    user_id: str,
    stage_runs: Mapping[str, int],
    written: Mapping[UUID, Sequence[PersonInScene]],
) -> PeopleToShow | None:
    """Find out before ``show_scenes``, so that its transaction is short, what it will change about people; None: the run has no faces."""
    run = stage_runs.get(graph.FACE.name)
    if run is None:
        return None
    # First: what changes meanwhile is seen by it.
    versions = versions_of_people(session, video_id, run)
    named = {scene for scene, people in written.items() if people}
    scenes = scenes_with_people(session, video_id, run) | named
    changes = compare_people(session, dict.fromkeys(scenes, ShownFaces(user_id, video_id, run)))
    stale = [scene for scene in scenes if list(changes.now.get(scene, ())) != list(written.get(scene, ()))]
    return PeopleToShow(versions, changes, stale)


def show_scenes(
    session: Session,
    video_id: str,
    user_id: str,
    stage_runs: Mapping[str, int],
    written: Mapping[UUID, Sequence[PersonInScene]],
    people: PeopleToShow | None = None,
) -> None:
    """Show callers the scenes of a run's split, as they are prepared, and none of another.

    ``written``: the people that each sidecar names. Whoever was named since is marked, for the next revision. ``people``: what
    ``find_people`` has found; it is done again if somebody was named since.
    """
    split_version = stage_runs[graph.SPLIT.name]
    is_new = _SCENES.c.split_version == split_version
    differs = _SCENES.c.live.is_distinct_from(is_new)
    of_video = _SCENES.c.video_id == video_id
    session.execute(_INDEX_LATER)
    session.execute(update(_SCENES).where(of_video, differs).values(live=is_new))
    same = _SCENES.c.scene_id == _PREPARED.c.scene_id
    prepared = {name: _PREPARED.c[name] for name in _COLUMNS}
    session.execute(update(_SCENES).where(same, of_video, is_new).values(prepared))
    session.execute(delete(_PREPARED).where(same, of_video))
    session.execute(update(_SCENES).where(of_video, _SCENES.c.people_changed).values(people_changed=False))
    run = stage_runs.get(graph.FACE.name)
    if run is None or people is None or people.versions != versions_of_people(session, video_id, run):
        people = find_people(session, video_id, user_id, stage_runs, written)
    if people is None:
        return
    show_people(session, people.changes)
    of_stale = (_SCENES.c.scene_id == any_(uuids(people.stale)), _SCENES.c.live)
    session.execute(update(_SCENES).where(*of_stale).values(people_changed=True))


def index_words(session: Session) -> None:
    """Take the words that ``show_scenes`` has left beside their indexes into them."""
    session.execute(_INDEX_WORDS)


def highest_idx(session: Session, video_id: str) -> int:
    """The highest idx of a video's scenes, of any split; -1: it has none."""
    highest = select(func.coalesce(func.max(Scene.idx), -1)).where(Scene.video_id == video_id)
    return session.scalars(highest).one()


def drop_unpublished(
    session: Session, video_id: str, stage_runs: Mapping[str, int], first_idx: int, last_idx: int
) -> None:
    """Delete what other runs have of the scenes first_idx..last_idx (inclusive), so that each stage has one output.

    ``stage_runs``: of the published run.
    """
    these = (Scene.video_id == video_id, Scene.idx.between(first_idx, last_idx))
    session.execute(delete(Scene).where(*these, Scene.split_version != stage_runs[graph.SPLIT.name]))
    scene_ids = any_(uuids(session.scalars(select(Scene.scene_id).where(*these)).all()))
    session.execute(delete(PreparedScene).where(PreparedScene.scene_id == scene_ids))
    for stage in graph.PIPELINE:
        for name in stage.tables if stage.name in stage_runs else ():
            found = table(name, column("scene_id"), column("run"))
            old = (found.c.scene_id == scene_ids, found.c.run != stage_runs[stage.name])
            session.execute(delete(found).where(*old))
    for family in (graph.TEXT.name, graph.VISION.name):
        if family in stage_runs:
            models = select(Model.model_id).where(Model.family == family)
            old = (Embedding.scene_id == scene_ids, Embedding.run != stage_runs[family])
            session.execute(delete(Embedding).where(*old, Embedding.model_id.in_(models)))


def drop_other_transcripts(session: Session, video_id: str, asr_run: int) -> None:
    """Delete the transcripts of runs but one."""
    of_others = (TranscriptPart.video_id == video_id) & (TranscriptPart.run != asr_run)
    session.execute(delete(TranscriptPart).where(of_others))
