"""``scenefleet people``: where a person is seen, the decisions of humans, and undoing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

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
    faces = read_pages(partial(client.faces, owner, person.person_id), "faces", page_size=1000)
    faces.sort(key=lambda face: (face.video_id, face.ts_s, face.track_id))
    nowhere = f"{escape(person.name)} is seen nowhere"
    document = {"person": person, "faces": faces}
    screen.answer(document, lambda: face_table(faces) if faces else nowhere, as_json=as_json)


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


def decide(
    who: str, change: Callable[[Client, str, str], PersonView], *, as_json: bool, user: str | None
) -> None:
    """Show the person that a decision about another, or the same one, left.

    Args:
        change: given a client, the user and the person's id, makes the decision.
    """
    client, owner = connect(user)
    person = change(client, owner, registry.find(client, owner, who).person_id)
    registry.show(person, as_json=as_json)
    screen.tell(
        f"event {person.event_id}: `scenefleet people undo {person.event_id}` takes it back", style="dim"
    )


def merge(who: str, into: str, *, as_json: bool, user: str | None) -> None:
    """Merge a person into another one."""

    def change(client: Client, owner: str, person_id: str) -> PersonView:
        return client.merge_people(owner, person_id, registry.find(client, owner, into).person_id)

    decide(who, change, as_json=as_json, user=user)


def undo(event: int, *, as_json: bool, user: str | None) -> None:
    """Undo an event and show the person it was about."""
    client, owner = connect(user)
    registry.show(client.undo(owner, event), as_json=as_json)


def show_events(*, limit: int, before: int | None, as_json: bool, user: str | None) -> None:
    """List what was done to the user's people, newest first."""
    client, owner = connect(user)
    found = client.people_events(owner, before=before, limit=limit)
    nothing = f"nothing was done to the people of user {owner}"
    screen.answer(found, lambda: event_table(found.events) if found.events else nothing, as_json=as_json)
    if not as_json and len(found.events) == limit:
        screen.tell(f"older ones: --before {found.events[-1].event_id}", style="dim")


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
