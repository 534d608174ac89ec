"""``scenefleet people``: people and their photos."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from cli import screen
from cli.connection import connect, read_pages
from cli.pictures import check_picture
from shared.client import Client
from shared.contracts import PersonView, PhotoList, PhotoView
from shared.errors import InvalidRequest, NotFound, Outage
from shared.settings import get_settings
from shared.storage import configured_storage

Extension = Literal["jpg", "jpeg", "png", "webp"]
#: How long `add` and `rm` wait until the fleet is done.
WAIT_S = 600.0
_PAUSE_S = 0.3


def find(client: Client, user: str, who: str) -> PersonView:
    """The person of this name or id."""
    for person in _all_people(client, user, None):
        if person.person_id == who or person.name.lower() == who.lower():
            return person
    raise NotFound(f"user {user} has no person {who!r}: see `scenefleet people list`")


def add(name: str, files: Sequence[Path], *, wait: bool, as_json: bool, user: str | None) -> int:
    """Create a person (or take the one of this name), add photos, enrol. Exit 1 when no photo is good enough."""
    kinds = [check_picture(path) for path in files]
    client, owner = connect(user)
    storage = configured_storage(get_settings())
    person = client.create_person(owner, name)
    names: dict[str, str] = {}
    for path, kind in zip(files, kinds, strict=True):
        extension = cast("Extension", path.suffix.lower().removeprefix("."))
        photo = client.add_photo(owner, person.person_id, extension=extension)
        storage.put_file("uploads", photo.storage_key, path, kind)
        names[photo.photo_id] = path.name
    if files:
        person = client.enroll(owner, person.person_id)
    if not wait or not files:
        show(person, as_json=as_json)
        return 0
    person = _wait(client, owner, person.person_id, "working")
    found = client.photos(owner, person.person_id)
    document = {"person": person, "photos": found.photos}
    screen.answer(document, lambda: Group(people_table([person]), photo_table(found, names)), as_json=as_json)
    return 0 if person.good_photos else 1


def _wait(client: Client, user: str, person_id: str, state: str) -> PersonView:
    """Until the person has left ``state``.

    Raises:
        Outage: not in ``WAIT_S``; the fleet goes on.
    """
    deadline = time.monotonic() + WAIT_S
    with screen.make_console(stderr=True).status(state) as spinner:
        while True:
            person = client.person(user, person_id)
            if person.state != state:
                return person
            if time.monotonic() > deadline:
                raise Outage(f"{person.name} is still {state} after {WAIT_S:g} s: is a `face` node running?")
            if state == "working":
                spinner.update(f"{state}: {person.progress:.0%}")
            time.sleep(_PAUSE_S)


def show_list(kind: str | None, *, as_json: bool, user: str | None) -> None:
    """List the user's people."""
    if kind not in (None, "named", "unknown"):
        raise InvalidRequest(f"--kind {kind} does not exist: use named or unknown")
    client, owner = connect(user)
    people = _all_people(client, owner, cast("Literal['named', 'unknown'] | None", kind))
    none_yet = f"user {owner} has no people yet: `scenefleet people add NAME PHOTO...`"
    screen.answer({"people": people}, lambda: people_table(people) if people else none_yet, as_json=as_json)


def _all_people(client: Client, user: str, kind: Literal["named", "unknown"] | None) -> list[PersonView]:
    return read_pages(partial(client.people, user, kind=kind), "people", page_size=1000)


def people_table(people: Sequence[PersonView]) -> Table:
    """People as a table."""
    table = screen.make_table("~name", "state", ">photos", ">scenes", ">videos", "id")
    for person in people:
        # Of the work that goes on; the word would leave a name no room on a narrow terminal.
        state = f"{person.progress:.0%}" if person.state == "working" else person.state
        photos = f"{person.good_photos}/{person.photos}" if person.photos else ""
        seen = (str(person.scenes or ""), str(person.videos or ""))
        table.add_row(escape(person.name), screen.styled(state), photos, *seen, person.person_id)
    return table


def show_photos(who: str, *, as_json: bool, user: str | None) -> None:
    """List a person's photos and what became of each."""
    client, owner = connect(user)
    found = client.photos(owner, find(client, owner, who).person_id)
    nothing = f"{escape(who)} has no photos"
    screen.answer(found, lambda: photo_table(found, {}) if found.photos else nothing, as_json=as_json)


def remove_photo(who: str, name: str, *, as_json: bool, user: str | None) -> None:
    """Remove a photo, by its name or id, and show the person."""
    client, owner = connect(user)
    person = find(client, owner, who)
    photos = client.photos(owner, person.person_id).photos
    chosen = [photo for photo in photos if name in (photo.photo_id, _shown_name(photo))]
    if not chosen:
        raise NotFound(f"{person.name} has no photo {name!r}: see `scenefleet people photos`")
    client.remove_photo(owner, person.person_id, chosen[0].photo_id)
    show(_wait(client, owner, person.person_id, "working"), as_json=as_json)


def _shown_name(photo: PhotoView) -> str:
    return photo.storage_key.rpartition("/")[2]


def photo_table(found: PhotoList, names: dict[str, str]) -> Table:
    """Photos as a table; ``names``: the files they came from."""
    table = screen.make_table("~photo", "state", "~")
    for photo in found.photos:
        shown = names.get(photo.photo_id, _shown_name(photo))
        table.add_row(escape(shown), photo.state, escape(photo.error or ""))
    return table


def show(person: PersonView, *, as_json: bool) -> None:
    """One person, as in the list."""
    screen.answer(person, lambda: people_table([person]), as_json=as_json)


def remove(who: str, *, sure: bool, as_json: bool, user: str | None) -> int:
    """Erase a person after asking, wait for the receipt and print it; exit 1 when something was left."""
    client, owner = connect(user)
    person = find(client, owner, who)
    if not sure:
        facts = f"{person.photos} photos, seen in {person.scenes} scenes"
        screen.ask(f"Erase {person.name} ({facts}) and everything derived from this face?")
    client.delete_person(owner, person.person_id)
    person = _wait(client, owner, person.person_id, "erasing")
    receipt = person.receipt or {}
    screen.answer(person, lambda: _receipt(receipt), as_json=as_json)
    return 1 if any(receipt.get("left", {}).values()) else 0


def _receipt(receipt: dict[str, Any]) -> Group:
    """What an erasure removed and left."""
    table = screen.make_table("", ">removed", ">left")
    removed, left = receipt.get("removed", {}), receipt.get("left", {})
    for what in sorted({*removed, *left}):
        table.add_row(what, str(removed.get(what, "")), str(left.get(what, "")))
    due = receipt.get("sweep_due")
    late = f"a link to upload a photo is still valid: its folder is emptied again at {due}"
    return Group(table, *([late] if due else []))
