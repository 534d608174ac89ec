"""``scenefleet people``: what is refused before anybody is asked, and the tables at the widths people have."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import subprocess
import sys
import termios
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from cli.main import app
from cli.people import acts, registry
from shared.contracts import EventView, FaceView, PersonView, PhotoList, PhotoView
from shared.errors import InvalidRequest

ROOT = Path(__file__).parents[3]
TRACK = "1f0c7f52-94a5-5f0e-9f0e-0f1f6d6f2d11"
PERSON = "7d0f6a3e-1c0f-4c57-9f66-2f7f8c1d9b10"
NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
FACE = FaceView(
    track_id=TRACK, video_id="a-rather-long-name-of-a-film-12345678", scene_id=PERSON, idx=1234, ts_s=3671.25,
    keyframe_key="k", box=(1, 2, 3, 4), faces=12, similarity=0.6249, decided_by="human",
)  # fmt: skip


def event(**facts: Any) -> EventView:
    fields = ("name", "other_id", "other", "old_name", "new_name", "faces", "undoes", "undone_by")
    given = {"event_id": 12, "person_id": PERSON, "video_ids": (), "created_at": NOW, **facts}
    return EventView(**{**dict.fromkeys(fields), **given})


def drawn(table: Table, columns: int) -> list[str]:
    sink = io.StringIO()
    Console(file=sink, width=columns, highlight=False).print(table)
    return sink.getvalue().splitlines()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("is Ann", "TRACK"),
        ("merge Ann", "INTO"),
        ("undo 0", "EVENT"),
        ("events --limit 1001", "--limit"),
        ("events --before 0", "--before"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments: str, said: str) -> None:
    result = CliRunner().invoke(app, ["people", *arguments.split()])
    assert result.exit_code == 2 and said in result.output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("photo.svg", "is no JPEG, PNG or WebP by its name"),
        ("photo", "is no JPEG, PNG or WebP by its name"),
        ("none.jpg", "is no file"),
        ("folder.jpg", "is a folder"),
        ("large.jpg", "has 33,554,433 bytes, more than 33,554,432: make it smaller"),
    ],
)
def test_what_is_no_photo_is_named_before_a_person_is_made(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    for file in ("good.png", "photo.svg", "photo", "large.jpg"):
        (tmp_path / file).touch()
    with (tmp_path / "large.jpg").open("r+b") as large:
        large.truncate(32 * 2**20 + 1)
    with pytest.raises(InvalidRequest, match=f"{name}' {said}"):
        registry.add("Ann", [tmp_path / "good.png", tmp_path / name], wait=True, as_json=False, user="u")


@pytest.mark.parametrize("typed", [b"n\n", b"\x04", b"\x03"])
def test_a_question_not_answered_with_yes_changes_nothing(typed: bytes, tmp_path: Path) -> None:
    """As `people rm` and others ask; the two last are the keys for the end of input and for an interrupt."""
    ours, theirs = pty.openpty()
    code = "import sys, cli.main as m; sys.argv[1:] = ['db', 'downgrade', 'base']; m.main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "SCENEFLEET_HOME": str(tmp_path)}, start_new_session=True,
        # The terminal that sends it signals.
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:  # fmt: skip
        assert process.stderr is not None and process.stdout is not None
        asked = b""
        while not asked.endswith(b"[y/N]:") and (more := process.stderr.read(1)):
            asked += more
        # Again and again, as one does: a signal between the question and the wait for its answer leaves Python waiting.
        for _ in range(12):
            os.write(ours, typed)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
                break
        process.kill()
        said, shown = process.stderr.read(), process.stdout.read()
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 1, asked + said
    assert said.endswith(b"scenefleet: not confirmed, nothing was changed\n") and shown.strip() == b""


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"kind": "create"}, "added"),
        ({"kind": "rename", "old_name": "unknown 1", "new_name": "Ann"}, "renamed from unknown 1 to Ann"),
        ({"kind": "confirm", "faces": 1, "video_ids": ("v",)}, "is shown by 1 face of v"),
        ({"kind": "reject", "faces": 2, "video_ids": ("v", "w")}, "is not shown by 2 faces of v, w"),
        ({"kind": "merge", "other": "Ann", "faces": 3}, "merged into Ann, with 3 faces"),
        ({"kind": "split", "other": "Bea", "faces": 1, "video_ids": ("v",)}, "1 face of v split off as Bea"),
        ({"kind": "undo", "undoes": 7}, "event 7 undone"),
        ({"kind": "erase"}, "erased"),
    ],
)
def test_an_event_reads_as_a_sentence(facts: dict[str, Any], said: str) -> None:
    assert acts.describe(event(**facts)) == said


@pytest.mark.parametrize("columns", [80, 120])
def test_ids_and_numbers_that_one_copies_are_whole_on_a_narrow_terminal(columns: int) -> None:
    person = PersonView(
        person_id=PERSON, user_id="u", name="Ann-Margret [b]Leandersdotter[/b] of Uppsala", kind="named",
        state="working", progress=1.0, photos=100, good_photos=99, scenes=12345, videos=1234, created_at=NOW,
    )  # fmt: skip
    photo = PhotoView(
        photo_id=TRACK, person_id=PERSON, storage_key="faces/u/p/photo_1.jpg", state="refused",
        error_class="SmallFace", error="the face is 37 px: use a photo where it has 64", box=None, quality=None,
    )  # fmt: skip
    merged = event(kind="merge", name="A" * 60, other="[red]x", faces=3, undone_by=13)
    tables = {
        TRACK: acts.face_table([FACE]),
        PERSON: registry.people_table([person]),
        "photo_1.jpg": registry.photo_table(PhotoList(person_id=PERSON, photos=(photo,)), {}),
        "by 13": acts.event_table([merged]),
    }
    for whole, table in tables.items():
        lines = drawn(table, columns)
        assert all(len(line) <= columns for line in lines)
        assert any(whole in line for line in lines), lines
        assert "…" not in "".join(lines)
    # What users wrote is shown as it is, not read as markup.
    assert "[red]x" in "".join(drawn(tables["by 13"], 120))
