"""Subtitles of the sample through a running fleet: by task name, by client, by command; and of hours of speech."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jiwer
import pytest

from shared.errors import Conflict, InvalidRequest, NotFound
from shared.subtitles import SubtitleFormat
from tests.acceptance.lite.conftest import VIEWER
from tests.support.figures import RecordFigure
from tests.support.fleet import ROOT, Fleet
from tests.unit.test_subtitles import FORMATS, read, segment, spoken

#: Whose the silent video is.
OWNER = "owner"


@pytest.fixture(scope="module", autouse=True)
def silent_video(fleet: Fleet, silent: Path) -> None:
    fleet.index(silent, "silent", OWNER)


@pytest.mark.parametrize("format", FORMATS)
def test_the_words_of_the_sample_at_their_times(
    indexed: Fleet, truth: dict[str, Any], format: SubtitleFormat
) -> None:
    found = indexed.client.subtitles("sample", VIEWER, format=format)
    assert (found.video_id, found.format, found.language) == ("sample", format, "en")
    cues = read(found.text, format)
    heard = " ".join(" ".join(cue.lines) for cue in cues)
    scenes = indexed.client.scenes("sample", VIEWER).scenes
    assert heard.split() == " ".join(scene.transcript for scene in scenes).split()
    said = " ".join(" ".join(scene["words"]) for scene in truth["scenes"])
    assert jiwer.wer(said.lower(), heard.lower()) < 0.15
    # Each word is shown while its scene is, give or take the words that a cue took along over a cut.
    for scene in scenes:
        shown = [
            cue for cue in cues if cue.end_ms > scene.start_s * 1000 and cue.start_ms < scene.end_s * 1000
        ]
        assert set(scene.transcript.split()) <= set(" ".join(" ".join(cue.lines) for cue in shown).split())


def test_others_and_odd_requests_get_a_sentence(indexed: Fleet) -> None:
    with pytest.raises(NotFound, match="no video 'sample'"):
        indexed.client.subtitles("sample", "u2")
    with pytest.raises(NotFound, match="no video 'nothing'"):
        indexed.client.subtitles("nothing", VIEWER)
    with pytest.raises(InvalidRequest, match="format='ass' is not acceptable"):
        indexed.client.subtitles("sample", VIEWER, format="ass")  # type: ignore[arg-type]


def test_a_video_that_is_not_indexed_is_not_called_silent(indexed: Fleet) -> None:
    indexed.rows(
        "INSERT INTO videos (video_id, user_id, external_id, storage_key, state, run)"
        " VALUES ('new', %s, 'new', 'k', 'processing', 1) RETURNING 1",
        OWNER,
    )
    try:
        with pytest.raises(Conflict, match="video new is processing and has no published scenes"):
            indexed.client.subtitles("new", OWNER)
    finally:
        indexed.rows("DELETE FROM videos WHERE video_id = 'new' RETURNING 1")


def test_twelve_hours_of_speech_pass_through_redis(indexed: Fleet, record_figure: RecordFigure) -> None:
    """Fifteen thousand cues, made up in the database of a video that is published."""
    words = "and so it goes on and on without an end in sight or a reason why it should ever have one"
    (scene,) = indexed.of_video("scenes", "silent", "idx = 0", user_id=OWNER)
    segments = [segment(*spoken(words, n * 6.0, each_s=0.25)) for n in range(7200)]
    change = "UPDATE scenes SET segments = %s, language = %s WHERE scene_id = %s RETURNING 1"
    indexed.rows(change, json.dumps(segments), "en", scene["scene_id"])
    try:
        for format in FORMATS:
            found = indexed.client.subtitles("silent", OWNER, format=format)
            cues = read(found.text, format)
            record_figure(f"{len(cues)} cues as {format}", f"{len(found.text) / 1e6:.1f} MB")
            assert len(cues) >= 7200 and len(found.text) > 10**6
            assert sum(len(" ".join(cue.lines).split()) for cue in cues) == 7200 * len(words.split())
    finally:
        indexed.rows(change, json.dumps(scene["segments"]), None, scene["scene_id"])


# --- the command


def run(fleet: Fleet, *arguments: str, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[bytes]:
    environment = fleet.process_environment(SCENEFLEET_USER=VIEWER, PYTHONPATH=str(ROOT), LC_ALL="C")
    found = subprocess.run(
        [sys.executable, "-m", "cli", "subtitles", *arguments],
        cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=120,
    )  # fmt: skip
    assert found.returncode == status, found
    return found


def test_the_command_writes_to_stdout_or_a_file_and_replaces_none_unasked(
    indexed: Fleet, tmp_path: Path
) -> None:
    srt, vtt = (indexed.client.subtitles("sample", VIEWER, format=format).text for format in FORMATS)
    found = run(indexed, "sample", cwd=tmp_path)
    assert (found.stdout.decode(), found.stderr) == (srt, b"")
    run(indexed, "sample", "-o", "a b.VTT", cwd=tmp_path)
    path = tmp_path / "a b.VTT"
    assert path.read_text() == vtt
    assert path.stat().st_mode & 0o777 == 0o666 & ~_mask()
    refused = run(indexed, "sample", "-o", "a b.VTT", "--format", "srt", cwd=tmp_path, status=1)
    assert refused.stderr == b"scenefleet: a b.VTT exists: --force replaces it\n"
    assert path.read_text() == vtt
    run(indexed, "sample", "-o", "a b.VTT", "--format", "srt", "--force", cwd=tmp_path)
    assert path.read_text() == srt
    assert [found.name for found in tmp_path.iterdir()] == ["a b.VTT"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sample", "-o", "nowhere/x.srt"), "there is no folder nowhere: make it, or name another file"),
        (("sample", "-o", "."), ". is a folder: name a file in it"),
        (("sample", "--format", "ass"), "format='ass' is not acceptable"),
        (("nothing", "-o", "x.srt"), "no video 'nothing'"),
        (("sample", "--user", "u2"), "no video 'sample'"),
    ],
)
def test_what_the_command_can_not_do(
    indexed: Fleet, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    found: Any = run(indexed, *arguments, cwd=tmp_path, status=1)
    assert found.stdout == b""
    assert found.stderr.decode().startswith(f"scenefleet: {says}") and found.stderr.count(b"\n") == 1
    assert not list(tmp_path.iterdir())


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
