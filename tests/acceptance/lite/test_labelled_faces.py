"""A labelled video made here: people who are known, alone and together, and a stranger among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from tests.contracts.candidates import needs_assets, photograph, sample_picture
from tests.support.clips import Encoding, picture, write_video
from tests.support.fleet import Fleet

USER = "director"


def portrait(name: str) -> Any:
    """uint8 [540, 480, 3]: somebody's head."""
    pixels = sample_picture(12.5)[:, 200:680] if name == "Ann" else photograph(f"{name.lower()}.jpg")
    side = min(pixels.shape[0] * 480 // 540, pixels.shape[1])
    cut = pixels[: side * 540 // 480, (pixels.shape[1] - side) // 2 :][:, :side]
    return cv2.resize(cut, (480, 540), interpolation=cv2.INTER_AREA)


#: Scene -> who stands left and right in it.
CAST: tuple[Sequence[str], ...] = (("Ann",), ("Obama",), ("Ann", "Obama"), ("Biden",), (), ("Biden", "Ann"))


def stage(people: Sequence[str], seed: int) -> Any:
    scene = picture(seed, 960, 540)
    for place, name in enumerate(people):
        scene[:, 480 * place : 480 * place + 480] = portrait(name)
    return scene


@needs_assets
def test_only_who_is_known_is_found_and_only_where_they_are(fleet: Fleet, tmp_path: Path) -> None:
    """Two enrolled people and a stranger of the same kind, alone and together."""
    scenes = [np.ascontiguousarray(stage(people, 70 + number)) for number, people in enumerate(CAST)]
    frames = (scene for scene in scenes for _ in range(25))
    write_video(tmp_path / "cast.mp4", frames, Encoding(size=(960, 540)))
    fleet.index(tmp_path / "cast.mp4", "cast", USER)
    assert len(fleet.client.scenes("cast", USER).scenes) == len(CAST)

    def enrol(name: str, pixels: Any) -> None:
        photo = tmp_path / f"{name}.png"
        cv2.imwrite(str(photo), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        done = fleet.command("people", "add", name, str(photo), "--user", USER)
        assert done.returncode == 0, done.stderr

    enrol("Ann", sample_picture(12.5))
    enrol("Obama", photograph("obama.jpg"))
    ids = {found.name: found.person_id for found in fleet.client.people(USER, kind="named").people}
    assert set(ids) == {"Ann", "Obama"}

    def scenes_with(*people: str, match: Literal["any", "all"] = "any") -> set[int]:
        answer = fleet.client.search(USER, persons=[ids[name] for name in people], persons_match=match)
        assert {hit.video_id for hit in answer.hits} <= {"cast"}
        return {hit.idx for hit in answer.hits}

    assert scenes_with("Ann") == {0, 2, 5}
    assert scenes_with("Obama") == {1, 2}
    assert scenes_with("Ann", "Obama") == {0, 1, 2, 5}
    assert scenes_with("Ann", "Obama", match="all") == {2}
    # The stranger has tracks, and none of them has a name.
    tracks = fleet.rows(
        "SELECT s.idx, p.name, p.kind FROM face_tracks t JOIN scenes s USING (scene_id)"
        " LEFT JOIN people p USING (person_id) WHERE s.live AND t.user_id = %s",
        USER,
    )
    assert any(row["idx"] == 3 for row in tracks)
    assert {row["name"] for row in tracks if row["idx"] == 3 and row["kind"] == "named"} == set()
    assert {row["name"] for row in tracks if row["idx"] == 5 and row["kind"] == "named"} == {"Ann"}
