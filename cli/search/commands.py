"""``scenefleet search``: its options and help; what it does is imported when it runs."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json, User

search_app = typer.Typer()
_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]


@search_app.command()
def search(
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to look for.")] = None,
    mode: Annotated[
        str, typer.Option("--mode", "-m", help="`hybrid`, `keyword` (as spoken) or `semantic` (by meaning).")
    ] = "hybrid",
    like: Annotated[str | None, typer.Option(metavar="VIDEO:#", help="More like this scene.")] = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="What looks like this picture.")] = None,
    person: Annotated[
        list[str] | None,
        typer.Option(metavar="WHO", help="Scenes with this person, name or id. Repeatable: with any."),
    ] = None,
    all_persons: Annotated[bool, typer.Option("--all-persons", help="With every --person at once.")] = False,
    prefer_persons: Annotated[
        bool, typer.Option("--prefer-persons", help="A --person raises the score and is not required.")
    ] = False,
    video: Annotated[list[str] | None, typer.Option(help="Only in this video. Repeatable.")] = None,
    language: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="Only where this is spoken: en. Repeatable.")
    ] = None,
    from_: Annotated[
        float | None, typer.Option("--from", metavar="SECONDS", min=0, help="Scenes that end after this.")
    ] = None,
    to: Annotated[
        float | None, typer.Option("--to", metavar="SECONDS", min=0, help="Scenes that begin before this.")
    ] = None,
    indexed_from: Annotated[
        datetime | None, typer.Option(formats=_TIMES, help="Videos indexed at this time (UTC) or later.")
    ] = None,
    indexed_to: Annotated[
        datetime | None, typer.Option(formats=_TIMES, help="Videos indexed before this time (UTC).")
    ] = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="NAME=VALUE", help="A filter of a plug-in. Repeatable."),
    ] = None,
    text_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Not by the active text model.")
    ] = None,
    vision_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Not by the active vision model.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most hits.")] = None,
    min_score: Annotated[float | None, typer.Option(min=0, help="No hits that score less.")] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            "-w",
            metavar="RETRIEVER=NUMBER",
            help="Of text, vision, lexical, keyword, screen or people. Repeatable.",
        ),
    ] = None,
    rerank: Annotated[
        int | None, typer.Option(min=1, max=50, help="Reorder the best N hits by the reranker.")
    ] = None,
    cursor: Annotated[str | None, typer.Option(help="The next page of a search.")] = None,
    recall: Annotated[
        bool, typer.Option("--recall", help="Measure the index on your own vectors, search nothing.")
    ] = False,
    json_: Json = False,
    user: User = None,
) -> None:
    """Find scenes by words, meaning, pictures, text on screen, and by who is there.

    [bold]scenefleet search rocket[/bold]
    [bold]scenefleet search '"space shuttle" or orbit -moon' --mode keyword[/bold]
    [bold]scenefleet search "a hot drink" --limit 5 --weight vision=0.6[/bold]
    [bold]scenefleet search --like demo-1a2b3c4d:3[/bold]
    """
    if recall:
        from cli.search import recall as recall_command

        recall_command.run(user=user, as_json=json_)
        return
    from cli.search import ask as command

    if all_persons and prefer_persons:
        from shared.errors import InvalidRequest

        raise InvalidRequest("--all-persons and --prefer-persons are mutually exclusive: give one of them")
    command.run(
        text,
        user=user,
        mode=mode,
        like=like,
        image=image,
        weights=weight or [],
        as_json=json_,
        video_ids=video or [],
        persons=person or [],
        persons_match="all" if all_persons else "prefer" if prefer_persons else "any",
        from_s=from_,
        to_s=to,
        indexed_from=indexed_from.isoformat() if indexed_from else None,
        indexed_to=indexed_to.isoformat() if indexed_to else None,
        text_model=text_model,
        vision_model=vision_model,
        languages=language or [],
        filters=filter_ or [],
        limit=limit,
        min_score=min_score,
        rerank=rerank,
        cursor=cursor,
    )
