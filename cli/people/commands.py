"""``scenefleet people``: its commands, options and help; what a command does is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json, Sure, User

people_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""
    The people to be found in videos, by their photos, and your decisions about them.

    PERSON is a name or an id, TRACK the id of a face as `people faces` shows it.

      [bold]scenefleet people add "Ann Lee" ann1.jpg ann2.jpg[/bold]
      [bold]scenefleet people faces "Ann Lee"[/bold]
      [bold]scenefleet people merge "unknown 2" "Ann Lee"[/bold]
    """,
)
PEOPLE, DECISIONS = "People and photos", "Decisions (each can be undone)"

Who = Annotated[str, typer.Argument(metavar="PERSON", help="Name or id of the person.")]
Tracks = Annotated[list[str], typer.Argument(metavar="TRACK", help="Faces by id, see `people faces`.")]


@people_app.command("add", rich_help_panel=PEOPLE)
def people_add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the person.")],
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[PHOTO...]", help="Photos that show this person only.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once the fleet has the photos.")] = False,
    json_: Json = False,
    user: User = None,
) -> int:
    """Add photos of a person, new or known, and look for the person in all videos.

    Exits 1 when no photo is good enough, and says why, photo by photo.

      [bold]scenefleet people add "Ann Lee" ann1.jpg ann2.jpg[/bold]
    """
    from cli.people import registry

    return registry.add(name, files or [], wait=not no_wait, as_json=json_, user=user)


@people_app.command("list", rich_help_panel=PEOPLE)
def people_list(
    kind: Annotated[str | None, typer.Option("--kind", help="Only `named` or `unknown` people.")] = None,
    json_: Json = False,
    user: User = None,
) -> None:
    """List the people, their photos, and in how many scenes they are."""
    from cli.people import registry

    registry.show_list(kind, as_json=json_, user=user)


@people_app.command("photos", rich_help_panel=PEOPLE)
def people_photos(who: Who, json_: Json = False, user: User = None) -> None:
    """List a person's photos, and what is wrong with them."""
    from cli.people import registry

    registry.show_photos(who, as_json=json_, user=user)


@people_app.command("rm-photo", rich_help_panel=PEOPLE)
def people_rm_photo(
    who: Who,
    photo: Annotated[str, typer.Argument(metavar="PHOTO", help="As `people photos` shows it, or its id.")],
    json_: Json = False,
    user: User = None,
) -> None:
    """Remove a photo of a person; the person is looked for again by the other photos.

    [bold]scenefleet people rm-photo "Ann Lee" photo_1760000000000.jpg[/bold]
    """
    from cli.people import registry

    registry.remove_photo(who, photo, as_json=json_, user=user)


@people_app.command("faces", rich_help_panel=PEOPLE)
def people_faces(who: Who, json_: Json = False, user: User = None) -> None:
    """Show where a person is seen, face by face: the track's id, scene, time, similarity, and who decided.

    [bold]scenefleet people faces "unknown 1"[/bold]
    """
    from cli.people import acts

    acts.show_faces(who, as_json=json_, user=user)


@people_app.command("rm", rich_help_panel=PEOPLE)
def people_rm(who: Who, yes: Sure = False, json_: Json = False, user: User = None) -> int:
    """Erase a person: photos, vectors, matches, mentions in sidecars; prints a receipt of a sweep afterwards."""
    from cli.people import registry

    return registry.remove(who, sure=yes, as_json=json_, user=user)


@people_app.command("rename", rich_help_panel=DECISIONS)
def people_rename(
    who: Who,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name.")],
    json_: Json = False,
    user: User = None,
) -> None:
    """Give a person another name; an unknown one becomes a named one.

    [bold]scenefleet people rename "unknown 1" "Ann Lee"[/bold]
    """
    from cli.people import acts

    acts.decide(who, lambda client, *ids: client.rename_person(*ids, name), as_json=json_, user=user)


@people_app.command("is", rich_help_panel=DECISIONS)
def people_is(who: Who, tracks: Tracks, json_: Json = False, user: User = None) -> None:
    """Confirm that these faces are this person's, whoever they were assigned to.

    The decision stays when the video is processed again.

      [bold]scenefleet people is "Ann Lee" 1f0c7f52-94a5-5f0e-9f0e-0f1f6d6f2d11[/bold]
    """
    from cli.people import acts

    acts.decide(
        who, lambda client, *ids: client.judge_faces(*ids, tracks, is_person=True), as_json=json_, user=user
    )


@people_app.command("is-not", rich_help_panel=DECISIONS)
def people_is_not(who: Who, tracks: Tracks, json_: Json = False, user: User = None) -> None:
    """Reject that these faces are this person's.

    The decision stays when the video is processed again.

      [bold]scenefleet people is-not "Ann Lee" 1f0c7f52-94a5-5f0e-9f0e-0f1f6d6f2d11[/bold]
    """
    from cli.people import acts

    acts.decide(
        who, lambda client, *ids: client.judge_faces(*ids, tracks, is_person=False), as_json=json_, user=user
    )


@people_app.command("merge", rich_help_panel=DECISIONS)
def people_merge(
    who: Who,
    into: Annotated[str, typer.Argument(metavar="INTO", help="Name or id of who it really is.")],
    json_: Json = False,
    user: User = None,
) -> None:
    """Merge a person into another one, who gets all photos and faces.

    [bold]scenefleet people merge "unknown 2" "Ann Lee"[/bold]
    """
    from cli.people import acts

    acts.merge(who, into, as_json=json_, user=user)


@people_app.command("split", rich_help_panel=DECISIONS)
def people_split(
    who: Who,
    tracks: Tracks,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the new person. Default: the next unknown.")
    ] = None,
    json_: Json = False,
    user: User = None,
) -> None:
    """Split these faces off as another person.

    [bold]scenefleet people split "unknown 1" 1f0c7f52-94a5-5f0e-9f0e-0f1f6d6f2d11 --name "Bea Moss"[/bold]
    """
    from cli.people import acts

    acts.decide(
        who, lambda client, *ids: client.split_person(*ids, tracks, name=name), as_json=json_, user=user
    )


@people_app.command("events", rich_help_panel=DECISIONS)
def people_events(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    before: Annotated[int | None, typer.Option(min=1, help="Only those before this event.")] = None,
    json_: Json = False,
    user: User = None,
) -> None:
    """List the changes to people, newest first, and which were undone."""
    from cli.people import acts

    acts.show_events(limit=limit, before=before, as_json=json_, user=user)


@people_app.command("undo", rich_help_panel=DECISIONS)
def people_undo(
    event: Annotated[int, typer.Argument(min=1, metavar="EVENT", help="Its number, see `people events`.")],
    json_: Json = False,
    user: User = None,
) -> None:
    """Undo a rename, a merge, a split or a confirmation.

    [bold]scenefleet people undo 12[/bold]
    """
    from cli.people import acts

    acts.undo(event, as_json=json_, user=user)
