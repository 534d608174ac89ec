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
    The people to be found in videos, by their photos, and what you say about them.

    PERSON is a name or an id, TRACK the id of a face as `people faces` shows it.

      [bold]scenefleet people add "Ann Lee" ann1.jpg ann2.jpg[/bold]
      [bold]scenefleet people faces "Ann Lee"[/bold]
      [bold]scenefleet people merge "unknown 2" "Ann Lee"[/bold]
    """,
)
KNOW, SAY = "Who there is", "What you say (each can be undone)"

Who = Annotated[str, typer.Argument(metavar="PERSON", help="Name or id of the person.", show_default=False)]
Tracks = Annotated[
    list[str],
    typer.Argument(metavar="TRACK", help="Faces by id, see `people faces`.", show_default=False),
]


@people_app.command("add", rich_help_panel=KNOW)
def people_add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the person.", show_default=False)],
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PHOTO...]", help="Photos that show this person only.", show_default=False),
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


@people_app.command("list", rich_help_panel=KNOW)
def people_list(
    kind: Annotated[
        str | None, typer.Option("--kind", help="Only `named` or `unknown` people.", show_default=False)
    ] = None,
    json_: Json = False,
    user: User = None,
) -> None:
    """Show the people, their photos, and in how many scenes they are."""
    from cli.people import registry

    registry.show_list(kind, as_json=json_, user=user)


@people_app.command("photos", rich_help_panel=KNOW)
def people_photos(who: Who, json_: Json = False, user: User = None) -> None:
    """Show a person's photos, and what is wrong with which."""
    from cli.people import registry

    registry.show_photos(who, as_json=json_, user=user)


@people_app.command("rm-photo", rich_help_panel=KNOW)
def people_rm_photo(
    who: Who,
    photo: Annotated[
        str,
        typer.Argument(metavar="PHOTO", help="As `people photos` shows it, or its id.", show_default=False),
    ],
    json_: Json = False,
    user: User = None,
) -> None:
    """Forget a photo of a person; the person is looked for again, by the others.

    [bold]scenefleet people rm-photo "Ann Lee" photo_1760000000000.jpg[/bold]
    """
    from cli.people import registry

    registry.remove_photo(who, photo, as_json=json_, user=user)


@people_app.command("faces", rich_help_panel=KNOW)
def people_faces(who: Who, json_: Json = False, user: User = None) -> None:
    """Show where a person is seen, face by face: the track's id, scene, time, how alike, and who said so.

    [bold]scenefleet people faces "unknown 1"[/bold]
    """
    from cli.people import acts

    acts.show_faces(who, as_json=json_, user=user)


@people_app.command("rm", rich_help_panel=KNOW)
def people_rm(
    who: Who,
    yes: Sure = False,
    json_: Json = False,
    user: User = None,
) -> int:
    """Erase a person: photos, vectors, matches, mentions in sidecars; prints a receipt of a sweep afterwards."""
    from cli.people import registry

    return registry.remove(who, sure=yes, as_json=json_, user=user)


@people_app.command("rename", rich_help_panel=SAY)
def people_rename(
    who: Who,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name.", show_default=False)],
    json_: Json = False,
    user: User = None,
) -> None:
    """Give a person another name; naming an unknown one makes it somebody.

    [bold]scenefleet people rename "unknown 1" "Ann Lee"[/bold]
    """
    from cli.people import acts

    acts.rename(who, name, as_json=json_, user=user)


@people_app.command("is", rich_help_panel=SAY)
def people_is(who: Who, tracks: Tracks, json_: Json = False, user: User = None) -> None:
    """Say that these faces are this person's, whoever they were taken for.

    It holds for ever, also when the video is processed again.

      [bold]scenefleet people is "Ann Lee" 1f0c7f52-94a5-5f0e-9f0e-0f1f6d6f2d11[/bold]
    """
    from cli.people import acts

    acts.judge(who, tracks, is_person=True, as_json=json_, user=user)


@people_app.command("is-not", rich_help_panel=SAY)
def people_is_not(who: Who, tracks: Tracks, json_: Json = False, user: User = None) -> None:
    """Say that these faces are not this person's.

    It holds for ever, also when the video is processed again.

      [bold]scenefleet people is-not "Ann Lee" 1f0c7f52-94a5-5f0e-9f0e-0f1f6d6f2d11[/bold]
    """
    from cli.people import acts

    acts.judge(who, tracks, is_person=False, as_json=json_, user=user)


@people_app.command("merge", rich_help_panel=SAY)
def people_merge(
    who: Who,
    into: Annotated[
        str, typer.Argument(metavar="INTO", help="Name or id of who it really is.", show_default=False)
    ],
    json_: Json = False,
    user: User = None,
) -> None:
    """Say that a person is another one, who gets all its photos and faces.

    [bold]scenefleet people merge "unknown 2" "Ann Lee"[/bold]
    """
    from cli.people import acts

    acts.merge(who, into, as_json=json_, user=user)


@people_app.command("split", rich_help_panel=SAY)
def people_split(
    who: Who,
    tracks: Tracks,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the new person. Default: the next unknown.", show_default=False),
    ] = None,
    json_: Json = False,
    user: User = None,
) -> None:
    """Say that these faces of a person are somebody else's; the others are the person's.

    [bold]scenefleet people split "unknown 1" 1f0c7f52-94a5-5f0e-9f0e-0f1f6d6f2d11 --name "Bea Moss"[/bold]
    """
    from cli.people import acts

    acts.split(who, tracks, name, as_json=json_, user=user)


@people_app.command("events", rich_help_panel=SAY)
def people_events(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    before: Annotated[
        int | None, typer.Option(min=1, help="Only those before this event.", show_default=False)
    ] = None,
    json_: Json = False,
    user: User = None,
) -> None:
    """Show what was done to the people, newest first, and what of it was undone."""
    from cli.people import acts

    acts.show_events(limit=limit, before=before, as_json=json_, user=user)


@people_app.command("undo", rich_help_panel=SAY)
def people_undo(
    event: Annotated[
        int,
        typer.Argument(min=1, metavar="EVENT", help="Its number, see `people events`.", show_default=False),
    ],
    json_: Json = False,
    user: User = None,
) -> None:
    """Undo a renaming, a merge, a split or a judgement.

    [bold]scenefleet people undo 12[/bold]
    """
    from cli.people import acts

    acts.undo(event, as_json=json_, user=user)
