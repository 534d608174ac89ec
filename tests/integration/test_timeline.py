"""The timeline that a player shows: words, people and on-screen text at their times, page by page, of one user."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pgvector import HalfVector
from sqlalchemy import event, update
from sqlalchemy.orm import Session

from db.engine import get_engine, transact
from db.faces.tracks import write_tracks
from db.ids import video_key
from db.scenes import Words, face_id, scene_id, write_faces, write_scenes, write_screen_texts
from db.tables import FaceTrack, Person, Run, Video
from db.vectors import ensure_model
from shared.contracts import ShowTimeline, TimelinePage, parse
from shared.errors import NotFound
from tasks import video
from tests.integration.conftest import Configure
from tests.support.films import segment, word
from tests.support.scenes import publish_scene

pytestmark = pytest.mark.usefixtures("database", "configure")

RUNS = {"split": 1, "asr": 1, "text": 1, "face": 2, "ocr": 2, "sidecar": 2}
MEDIA = {
    "container": "mov,mp4,m4a,3gp,3g2,mj2", "flavour": "mp4", "index": "start", "duration_s": 30.0, "streams": 2,
    "video": {"codec": "h264", "width": 640, "height": 360, "rotation_deg": 90, "pix_fmt": "yuv420p"},
    "audio": {"codec": "aac"},
}  # fmt: skip


def film(user: str, scenes: int = 3, media: dict[str, Any] | None = None) -> None:
    """Video "v" of this user: scenes of ten seconds with keyframes at 2, 5 and 8 s, each with words, a face and a line."""
    key = video_key(user, "v")

    def write(session: Session) -> None:
        session.add(
            Video(
                video_id=key, external_id="v", user_id=user, storage_key=f"uploads/{user}/v/a.mp4", state="indexed",
                run=2, published_run=2, duration_s=10.0 * scenes, media=media or MEDIA,
            )
        )  # fmt: skip
        session.flush()
        session.add(Run(video_id=key, run=2, stages=[], stage_runs=RUNS))
        session.add(Person(person_id=f"p-{user}", external_id="ann", user_id=user, name="Ann"))
        shape = {"revision": "1", "dim": 4, "metric": "cosine"}
        faces = ensure_model(session, name="f", family="face", **shape).model_id
        ocr = ensure_model(session, name="o", family="ocr", **shape).model_id
        rows = []
        for idx in range(scenes):
            frames = [
                {"ordinal": n, "key": f"keyframes/{user}/v/1.1/{idx}_{n}.jpg", "ts_s": 10.0 * idx + at, "width": 64,
                 "height": 36} for n, at in enumerate((2.0, 5.0, 8.0))
            ]  # fmt: skip
            rows.append(
                {
                    "idx": idx,
                    "start_s": 10.0 * idx,
                    "end_s": 10.0 * idx + 10,
                    "kind": "cut",
                    "keyframes": frames,
                }
            )
        write_scenes(session, key, user, 1, rows)
        for row in rows:
            scene = scene_id(key, 1, row["idx"])
            _find(session, scene, row, user, faces, ocr)
            said = segment(word(row["start_s"] + 1, "hello"), word(row["start_s"] + 2, user))
            noise = {**segment(word(row["start_s"] + 4, "uh")), "rejected": "no speech"}
            publish_scene(session, scene, Words(said["text"], "en", [said, noise]), "k", RUNS, f"line {user}")

    def _find(session: Session, scene: Any, row: Any, user: str, faces: int, ocr: int) -> None:
        # Run 1's are not published. Ann is in the first two keyframes, a stranger in the last one.
        for run in (1, 2):
            rows = [
                {
                    "face_id": face_id(scene, run, n, 0), "scene_id": scene, "user_id": user, "run": run, "ordinal": n,
                    "ts_s": row["keyframes"][n]["ts_s"], "box": [1, 2, 3, 4], "landmarks": [], "det_score": 0.9,
                    "model_id": faces, "vec": HalfVector(np.ones(4)), "quality": None, "track": track,
                }
                for n, track in ((0, 0), (1, 0), (2, 1))
            ]  # fmt: skip
            write_faces(session, run, [scene], rows)
            write_tracks(session, key, user, run, [scene], "cosine")
            line = {
                "text": f"line {user} {run}",
                "score": 0.9,
                "sightings": [{"ordinal": 1, "ts_s": row["start_s"] + 5}],
            }
            write_screen_texts(session, ocr, run, user, [scene], {scene: [line]})
        known = (FaceTrack.scene_id == scene, FaceTrack.track == 0)
        session.execute(update(FaceTrack).where(*known).values(person_id=f"p-{user}"))

    transact(write)


def timeline(user: str, **payload: Any) -> TimelinePage:
    return TimelinePage.model_validate_json(json.dumps(video.timeline(video_id="v", user_id=user, **payload)))


def statements(ask: Any) -> Sequence[str]:
    """The statements on tables that ``ask`` runs."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if " FROM " in statement:
            seen.append(statement)

    event.listen(get_engine(), "before_cursor_execute", note)
    try:
        ask()
    finally:
        event.remove(get_engine(), "before_cursor_execute", note)
    return seen


def test_a_scene_has_what_is_published_of_it_at_its_times() -> None:
    film("u1")
    film("u2")
    page = timeline("u1")
    assert (page.video_id, page.duration_s, page.sprites, page.next_after_idx) == ("v", 30.0, False, None)
    assert page.media.model_dump() == {
        "playable": "original", "reason": None, "width_px": 360, "height_px": 640, "bucket": "uploads",
        "key": "uploads/u1/v/a.mp4",
    }  # fmt: skip
    assert [(scene.idx, scene.start_s, scene.end_s) for scene in page.scenes] == [
        (0, 0, 10),
        (1, 10, 20),
        (2, 20, 30),
    ]
    scene = page.scenes[1]
    assert [(frame.ts_s, frame.width, frame.height) for frame in scene.keyframes] == [
        (12, 64, 36), (15, 64, 36), (18, 64, 36),
    ]  # fmt: skip
    (said,) = scene.segments
    assert (said.start_s, said.text) == (11, "hello u1")
    assert [(one.start_s, one.text) for one in said.words] == [(11, "hello"), (12, "u1")]
    assert [(line.text, line.ts_s) for line in scene.screen] == [("line u1 2", 15)]
    # From the scene's start to the middle between the second and third keyframes; from there to its end.
    assert [(who.person_id, who.name, who.start_s, who.end_s) for who in scene.people] == [
        ("ann", "Ann", 10, 16.5), (None, None, 16.5, 20),
    ]  # fmt: skip
    assert "u2" not in page.model_dump_json()
    with pytest.raises(NotFound, match="no video 'v'"):
        timeline("u3")


def test_pages_go_on_where_they_ended_with_as_many_statements_whatever_their_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    film("u1", scenes=7)
    found: list[int] = []
    after: int | None = -1
    while after is not None:
        page = timeline("u1", after_idx=after, limit=3)
        found += [scene.idx for scene in page.scenes]
        after = page.next_after_idx
    assert found == list(range(7))
    counts = {len(statements(lambda limit=limit: timeline("u1", limit=limit))) for limit in (1, 7)}
    assert len(counts) == 1 and counts.pop() <= 4
    # A scene has two segments and three words: the second one reaches the limit.
    monkeypatch.setattr("db.timeline._MAX_WORDS", 9)
    page = timeline("u1", limit=7)
    assert ([scene.idx for scene in page.scenes], page.next_after_idx) == ([0, 1], 1)


def test_what_no_browser_plays_is_said_with_its_reason(configure: Configure) -> None:
    film("u1", media={**MEDIA, "video": {**MEDIA["video"], "codec": "hevc"}})
    answer = video.media(video_id="v", user_id="u1")
    assert answer["media"]["playable"] == "none"
    assert answer["media"]["reason"] == "browsers don't play hevc, and there is no rendition (yet)"
    assert answer["original_key"] == "uploads/u1/v/a.mp4"
    assert (answer["media"]["bucket"], answer["media"]["key"], answer["sprites_prefix"]) == (None, None, None)
    assert parse(ShowTimeline, {"video_id": "v", "user_id": "u1"}).limit == 100
