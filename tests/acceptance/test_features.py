"""Features switched off and on again on real nodes of the profile lite: nothing is lost, nothing has to be made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest

from shared.contracts import SearchAnswer, VideoStatus
from shared.errors import Conflict, InvalidRequest
from tests.acceptance.conftest import MakeFleet
from tests.contracts.candidates import sample_picture
from tests.support.excerpt import write_excerpt
from tests.support.fleet import FAMILIES, Fleet

USER, VIDEO, LATER = "u1", "excerpt", "later"
#: Nobody says it.
SHOWN = "quarterly"
OFF = {f"FEATURE_{name}": "false" for name in ("SEMANTIC_SEARCH", "OCR", "FACE_DETECTION", "FACE_ENROLLMENT")}
#: What the stages have stored of published scenes, by the scene's number.
STORED = {
    "text": ("r.ordinal, r.vec::text", "embeddings", "r.run = s.text_run", "2"),
    "faces": ("r.ordinal, r.box, r.det_score, r.vec::text", "faces", "r.run = s.face_run", "2, r.box::text"),
    "tracks": ("r.track, r.person_id, r.similarity, r.votes", "face_tracks", "r.run = s.face_run", "2"),
    "people": ("r.person_id, r.confidence, r.frame_count", "scene_people", "true", "2"),
    "screen": ("r.text, r.score, r.sightings, s.screen_text", "screen_texts", "r.run = s.ocr_run", "r.place"),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    path = tmp_path_factory.mktemp("clip") / "excerpt.mp4"
    write_excerpt(sample, path, caption="Quarterly report 4711")
    return path


@pytest.fixture(scope="module")
def fleet(make_fleet: MakeFleet, clip: Path) -> Fleet:
    """A fleet that has indexed the excerpt and knows the astronaut."""
    found = make_fleet()
    switch(found)
    photo = found.home / "ann.png"
    cv2.imwrite(str(photo), cv2.cvtColor(sample_picture(12.5), cv2.COLOR_RGB2BGR))
    command(found, "people", "add", "Ann", str(photo))
    found.process(clip, VIDEO)
    ended(found, VIDEO)
    return found


def switch(fleet: Fleet, *names: str, **flags: str) -> None:
    """Start nodes again with these settings."""
    fleet.stop(*[name for name in names or FAMILIES if name in fleet.nodes])
    fleet.start(*names, **flags)
    fleet.wait_ready()


def command(fleet: Fleet, *arguments: str, status: int = 0) -> str:
    done = fleet.command(*arguments, SCENEFLEET_USER=USER, COLUMNS="160")
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout if status == 0 else done.stderr


def ended(fleet: Fleet, video_id: str) -> VideoStatus:
    return fleet.wait_for(video_id, within_s=200)


def states(status: VideoStatus) -> dict[str, str]:
    return {stage.stage: stage.state for stage in status.stages}


def stored(fleet: Fleet, video_id: str = VIDEO) -> dict[str, list[Any]]:
    query = (
        "SELECT s.idx, {} FROM {} r JOIN scenes s USING (scene_id) JOIN videos v ON v.video_id = s.video_id"
        " WHERE s.live AND external_id = %s AND {} ORDER BY 1, {}"
    )
    found = {name: fleet.rows(query.format(*parts), video_id) for name, parts in STORED.items()}
    return {name: [tuple(row.values()) for row in rows] for name, rows in found.items()}


def person(fleet: Fleet) -> str:
    (found,) = fleet.client.people(USER, kind="named").people
    return found.person_id


def answers(fleet: Fleet) -> dict[str, SearchAnswer]:
    """What a caller asks: by meaning, by all retrievers, by who is there."""
    ann = person(fleet)
    asked: dict[str, dict[str, Any]] = {
        "meaning": {"query": "a space ship", "mode": "semantic"},
        "all": {"query": "rocket"},
        "shown": {"query": SHOWN},
        "with Ann": {"query": "rocket", "persons": [ann]},
        "Ann": {"persons": [ann]},
    }
    return {name: fleet.client.search(USER, video_id=VIDEO, **options) for name, options in asked.items()}


def retrievers(answer: SearchAnswer) -> dict[str, str | None]:
    """Retriever -> why it took no part, None for those that did."""
    return {retriever.retriever: retriever.reason for retriever in answer.coverage.retrievers}


def test_off_on_and_in_between(fleet: Fleet, clip: Path) -> None:
    before, found = stored(fleet), answers(fleet)
    assert all(before.values()), {name: len(rows) for name, rows in before.items()}
    assert found["meaning"].hits and found["with Ann"].hits and found["Ann"].hits
    assert [hit.idx for hit in found["shown"].hits if "screen" in hit.similarities][:1] == [0]
    ann = person(fleet)

    # Off: stages do nothing, retrievers say why, all that is stored stays through any rerun.
    fleet.stop("text", "face", "ocr")
    switch(fleet, "media", "asr", "housekeeping", "search", **OFF)
    for stages in ([], ["asr"], ["split"]):
        fleet.client.rerun(VIDEO, USER, stages)
        status = ended(fleet, VIDEO)
        assert status.published_run == status.run
        assert {states(status)[stage] for stage in ("text", "face", "ocr")} == {"reused"}
        assert stored(fleet) == before
    refused = command(fleet, "rerun", VIDEO, "-s", "face", status=1)
    assert "face can't be made again: FEATURE_FACE_DETECTION is off" in refused
    with pytest.raises(Conflict, match=r"text: FEATURE_SEMANTIC_SEARCH is off.*search by mode keyword"):
        fleet.client.search(USER, "a space ship", mode="semantic")
    hybrid = fleet.client.search(USER, "rocket")
    assert hybrid.hits and hybrid.degraded == {}
    assert retrievers(hybrid)["text"] == "FEATURE_SEMANTIC_SEARCH is off"
    assert retrievers(hybrid)["screen"] == "FEATURE_OCR is off" and retrievers(hybrid)["keyword"] is None
    assert fleet.client.search(USER, SHOWN).hits == ()
    alone = fleet.client.search(USER, persons=[ann], video_id=VIDEO)
    assert [hit.scene_id for hit in alone.hits] == [hit.scene_id for hit in found["Ann"].hits]
    refused = command(fleet, "people", "add", "Ben", str(fleet.home / "ann.png"), status=1)
    assert "FEATURE_FACE_ENROLLMENT is off; those that are there stay" in refused
    fleet.process(clip, LATER)
    status = ended(fleet, LATER)
    assert states(status)["face"] == states(status)["ocr"] == "skipped"
    assert "0 of 2 videos lacked something" in command(fleet, "rerun", "--missing")

    # Everything about faces off: nobody is searched for, but all requests that only read answer.
    switch(fleet, "search", **OFF, FEATURE_FACE="false")
    with pytest.raises(Conflict, match="persons can't be searched: FEATURE_FACE is off"):
        fleet.client.search(USER, "rocket", persons=[ann])
    assert person(fleet) == ann and fleet.client.person(USER, ann).scenes > 0
    assert fleet.client.photos(USER, ann).photos and fleet.client.faces(USER, ann).faces
    assert {event.person_id for event in fleet.client.people_events(USER).events} <= {ann}
    assert "Ann" in command(fleet, "people", "list")

    # On again: the same rows, the same answers, nothing had to be made.
    switch(fleet)
    assert stored(fleet) == before
    assert answers(fleet) == found

    # What was not made meanwhile is made on request: the vectors of words heard again, all of the later video.
    receipts = json.loads(command(fleet, "rerun", "--missing", "--json"))["receipts"]
    accepted = [(receipt["video_id"], receipt["accepted"]) for receipt in receipts]
    assert accepted == [(VIDEO, True), (LATER, True)]
    again = states(ended(fleet, VIDEO))
    assert (again["text"], again["face"], again["ocr"]) == ("done", "reused", "reused")
    ended(fleet, LATER)
    assert stored(fleet) == before and stored(fleet, LATER) == before
    assert {name: answer.hits for name, answer in answers(fleet).items()} == {
        name: answer.hits for name, answer in found.items()
    }
    assert "lacks nothing" in command(fleet, "rerun", VIDEO, "--missing")
    with pytest.raises(InvalidRequest, match="missing and stages='text' are both given"):
        fleet.client.rerun(VIDEO, USER, ["text"], missing=True)
    assert "name a video, or --missing alone" in command(fleet, "rerun", status=1)
