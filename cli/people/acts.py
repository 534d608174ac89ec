"""``scenefleet people``: where a person is seen, the decisions of humans, and undoing them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from cli import screen
from cli.connection import connect, read_pages
from cli.people import registry
from shared.client import Client
from shared.contracts import EventView, FaceView, PersonView


def show_faces(who: str, *, as_json: bool, user: str | None) -> None:
    """List where a person is seen, in the order of the videos."""
    client, owner = connect(user)
    person = registry.find(client, owner, who)
    faces = all_faces(client, owner, person.person_id)
    screen.answer(
        {"person": person, "faces": faces},
        lambda: face_table(faces) if faces else f"{escape(person.name)} is seen nowhere",
        as_json=as_json,
    )


def all_faces(client: Client, user: str, person_id: str) -> list[FaceView]:
    """Every face of a person, by video and time."""

    def read(after: str | None, count: int) -> tuple[Sequence[FaceView], str | None]:
        page = client.faces(user, person_id, after=after, limit=count)
        return page.faces, page.next_after

    found = read_pages(read, page_size=1000)
    return sorted(found, key=lambda face: (face.video_id, face.ts_s, face.track_id))


def face_table(faces: Sequence[FaceView]) -> Table:
    """Faces as a table; faces that a human decided have no similarity."""
    table = screen.make_table("track", "~scene", ">time", ">frames", ">similarity", "by")
    for face in faces:
        table.add_row(
            face.track_id,
            f"{escape(face.video_id)}:{face.idx}",
            screen.clock(face.ts_s),
            str(face.faces),
            "" if face.similarity is None else f"{face.similarity:.2f}",
            "you" if face.decided_by == "human" else "",
        )
    return table


def rename(who: str, name: str, *, as_json: bool, user: str | None) -> None:
    """Give a person another name."""
    client, owner = connect(user)
    _done(client.rename_person(owner, registry.find(client, owner, who).person_id, name), as_json=as_json)


def judge(who: str, tracks: Sequence[str], *, is_person: bool, as_json: bool, user: str | None) -> None:
    """Confirm or reject faces of a person."""
    client, owner = connect(user)
    person = registry.find(client, owner, who)
    _done(client.judge_faces(owner, person.person_id, tracks, is_person=is_person), as_json=as_json)


def merge(who: str, into: str, *, as_json: bool, user: str | None) -> None:
    """Merge a person into another one."""
    client, owner = connect(user)
    person, other = registry.find(client, owner, who), registry.find(client, owner, into)
    _done(client.merge_people(owner, person.person_id, other.person_id), as_json=as_json)


def split(who: str, tracks: Sequence[str], name: str | None, *, as_json: bool, user: str | None) -> None:
    """Split some faces off as another person, and show that one."""
    client, owner = connect(user)
    person = registry.find(client, owner, who)
    _done(client.split_person(owner, person.person_id, tracks, name=name), as_json=as_json)


def undo(event: int, *, as_json: bool, user: str | None) -> None:
    """Undo an event and show the person it was about."""
    client, owner = connect(user)
    registry.show(client.undo(owner, event), as_json=as_json)


def _done(person: PersonView, *, as_json: bool) -> None:
    registry.show(person, as_json=as_json)
    screen.make_console(stderr=True).print(
        f"event {person.event_id}: `scenefleet people undo {person.event_id}` takes it back", style="dim"
    )


def show_events(*, limit: int, before: int | None, as_json: bool, user: str | None) -> None:
    """List what was done to the user's people, newest first."""
    client, owner = connect(user)
    found = client.people_events(owner, before=before, limit=limit)
    screen.answer(
        found,
        lambda: (
            event_table(found.events) if found.events else f"nothing was done to the people of user {owner}"
        ),
        as_json=as_json,
    )
    if as_json:
        return
    if len(found.events) == limit:
        last = found.events[-1].event_id
        screen.make_console(stderr=True).print(f"older ones: --before {last}", style="dim")


def event_table(events: Sequence[EventView]) -> Table:
    """Events as a table."""
    table = screen.make_table(">event", "when (UTC)", "~who", "~what", "undone")
    for event in events:
        table.add_row(
            str(event.event_id),
            screen.minute(event.created_at),
            escape(event.name or event.person_id or ""),
            escape(describe(event)),
            "" if event.undone_by is None else f"by {event.undone_by}",
        )
    return table


def describe(event: EventView) -> str:
    """What was done, as text that follows the person's name."""
    faces = f"{event.faces} face{'' if event.faces == 1 else 's'}"
    videos = ", ".join(event.video_ids)
    match event.kind:
        case "create":
            return "added"
        case "rename":
            return f"renamed from {event.old_name} to {event.new_name}"
        case "confirm":
            return f"is shown by {faces} of {videos}"
        case "reject":
            return f"is not shown by {faces} of {videos}"
        case "merge":
            return f"merged into {event.other}, with {faces}"
        case "split":
            return f"{faces} of {videos} split off as {event.other}"
        case "undo":
            return f"event {event.undoes} undone"
        case "erase":
            return "erased"
        case other:
            return other
