"""The ``scenefleet`` command: its options and help. What a command does is imported when it runs, so help is quick."""

from __future__ import annotations

import gc
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cli.models.commands import models_app
from cli.options import Json, User
from cli.people.commands import people_app
from shared.exit_status import ExitStatus

app = typer.Typer(
    name="scenefleet",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""
    Turn videos into searchable scenes.

    Start a fleet on this machine, index a video, search it:

      [bold]scenefleet up[/bold]
      [bold]scenefleet index film.mp4[/bold]
      [bold]scenefleet search "a hot drink"[/bold]
    """,
)
db_app = typer.Typer(no_args_is_help=True, help="The database's schema: upgrade it, see where it stands.")
app.add_typer(db_app, name="db", rich_help_panel="Run")
app.add_typer(models_app, name="models", rich_help_panel="Run")
app.add_typer(people_app, name="people", rich_help_panel="Videos")

RUN, VIDEOS = "Run", "Videos"
_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]

Video = Annotated[str, typer.Argument(metavar="VIDEO", help="Id of the video.", show_default=False)]
Family = Annotated[
    str,
    typer.Argument(help="media, asr, text, vision, face, ocr, housekeeping or search.", show_default=False),
]


@app.command(rich_help_panel=RUN)
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run behind, return when ready.")] = False,
) -> int:
    """Run the fleet on this machine until Ctrl-C.

    Without POSTGRES_URL and REDIS_URL it brings its own Postgres and Redis, with their data in SCENEFLEET_HOME
    (default ~/.scenefleet). Starts one node per family of SCENEFLEET_NODES and starts a dead one again.

      [bold]scenefleet up[/bold]
      [bold]SCENEFLEET_NODES=media:2,asr:4,text,housekeeping,search scenefleet up --detach[/bold]
      [bold]SCENEFLEET_NODES=media:2,asr@0+1,text@0,vision@1,face@1,housekeeping,search scenefleet up[/bold]
    """
    from cli import up as command

    return command.run_detached() if detach else command.run_foreground()


@app.command(rich_help_panel=RUN)
def down() -> int:
    """Stop the fleet that `up` runs here; what is in work continues at the next `up`."""
    from cli import up as command

    return command.run_down()


@app.command(rich_help_panel=RUN)
def node(
    family: Family,
    name: Annotated[str | None, typer.Option(help="Name of this instance. Default: the family.")] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            "-c",
            min=1,
            max=256,
            help="Processes. Default: 1, or one per GPU.",
            show_default=False,
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="GPUs, one per process: 0,1 or UUIDs or MIG-... names. Default: SCENEFLEET_GPUS.",
            show_default=False,
        ),
    ] = None,
    starts: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Become one worker node of a family (containers run this; `up` does it for you).

    [bold]POSTGRES_URL=... REDIS_URL=... scenefleet node asr --concurrency 4[/bold]
    [bold]POSTGRES_URL=... REDIS_URL=... scenefleet node asr --gpu 0,1[/bold]
    """
    from cli import node as command

    command.run(family, name, concurrency, gpu, starts)


@app.command("node-health", rich_help_panel=RUN)
def node_health(
    family: Family,
    name: Annotated[str | None, typer.Option(help="Name of the instance. Default: any.")] = None,
) -> None:
    """Exit 0 when a node of the family on this host is ready (for container health checks)."""
    from cli import node as command

    command.health(family, name)


@app.command(rich_help_panel=RUN)
def doctor(json_: Json = False) -> int:
    """Check everything the fleet depends on, and say what to do; exit 1 when something essential is broken."""
    from cli.doctor import run as command

    return command.run(as_json=json_)


@app.command(rich_help_panel=RUN)
def usage(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most rows, the heaviest first.")] = 50,
    json_: Json = False,
) -> None:
    """Show which users have used the fleet's processes lately, by queue: what decides whose job is next."""
    from cli import usage as command

    command.run(limit, as_json=json_)


@app.command(rich_help_panel=RUN)
def settings(json_: Json = False) -> None:
    """Show every setting: its environment variable, its value here, what it does."""
    from cli import settings_table

    settings_table.run(as_json=json_)


@db_app.command("bootstrap")
def db_bootstrap(
    admin_url: Annotated[
        str,
        typer.Option(
            help="The Postgres of POSTGRES_URL for an administrator; default POSTGRES_ADMIN_URL, which no process list shows."
        ),
    ] = "",
    rename_admin: Annotated[
        str,
        typer.Option(
            help="First give the administrator this name: for a server whose first superuser is the role of POSTGRES_URL."
        ),
    ] = "",
) -> None:
    """Make the role and the database of POSTGRES_URL and the extension vector; safe at any time, again and again."""
    from cli.database import schema

    schema.bootstrap(admin_url, rename_admin)


@db_app.command("upgrade")
def db_upgrade(
    revision: Annotated[
        str, typer.Argument(help="Revision to go to; `PLUGIN@REV`: of that plug-in alone.")
    ] = "head",
) -> None:
    """Bring the database to this version's schema; safe at any time, from several machines at once."""
    from cli.database import schema

    schema.upgrade(revision)


@db_app.command("downgrade")
def db_downgrade(
    revision: Annotated[
        str,
        typer.Argument(
            help="Revision to go back to; `base`: drop everything; `PLUGIN@base`: what that plug-in has."
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Take the schema back to an older revision; data that it can't hold is lost."""
    from cli.database import schema

    schema.downgrade(revision, sure=yes)


@db_app.command("current")
def db_current(json_: Json = False) -> int:
    """Say which revision the database has; exit 1 when it is not the one this version wants."""
    from cli.database import schema

    return schema.current(as_json=json_)


@db_app.command("purge")
def db_purge(
    every_table: Annotated[
        bool,
        typer.Option("--all", help="Every table, not only those about people: vectors' indexes take long."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    json_: Json = False,
) -> int:
    """Take what was erased out of the servers' files too: rewrite tables and Redis' append-only file.

    Example: scenefleet db purge --yes
    """
    from cli.database import purge

    return purge.run(every_table=every_table, sure=yes, as_json=json_)


@app.command(rich_help_panel=VIDEOS)
def index(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", show_default=False, help="Video files.")],
    video_id: Annotated[
        str | None, typer.Option("--id", help="Id of the video (one file). Default: made from its name.")
    ] = None,
    priority: Annotated[
        int, typer.Option(min=0, max=9, help="0 to 9, higher goes first among your videos.")
    ] = 0,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return once the fleet has accepted it.")
    ] = False,
    json_: Json = False,
    user: User = None,
) -> int:
    """Upload videos, hand them to the fleet, and watch until they are indexed.

    Exits 1 when a video ends failed, partial or cancelled, and says why. Ctrl-C stops watching, not the work.

      [bold]scenefleet index film.mp4[/bold]
      [bold]scenefleet index --no-wait *.mp4[/bold]
      [bold]scenefleet index lecture.mkv --id lecture-07 --json[/bold]
    """
    from cli.videos import index as command

    return command.run(files, video_id, priority=priority, wait=not no_wait, as_json=json_, user=user)


@app.command(rich_help_panel=VIDEOS)
def status(
    video: Annotated[
        str | None, typer.Argument(metavar="[VIDEO]", help="Id of the video.", show_default=False)
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATE",
            show_default=False,
            help="List only videos that are `uploaded`, `processing`, `indexed`, `partial`, `failed` or `cancelled`. Repeatable.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most videos to list, newest first.")] = 50,
    json_: Json = False,
    user: User = None,
) -> None:
    """Show where a video stands, stage by stage; without VIDEO, list your videos.

    [bold]scenefleet status[/bold]
    [bold]scenefleet status --state failed --state partial[/bold]
    [bold]scenefleet status demo-1a2b3c4d[/bold]
    """
    from cli.videos import requests

    if video is None:
        requests.show_list(states=state or [], limit=limit, as_json=json_, user=user)
    else:
        requests.show_status(video, as_json=json_, user=user)


@app.command(rich_help_panel=VIDEOS)
def failures(
    video: Annotated[
        str | None, typer.Argument(metavar="[VIDEO]", help="Only of this video.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most failures to list, newest first.")] = 100,
    json_: Json = False,
    user: User = None,
) -> None:
    """List the jobs that failed for good: which stage of which video, why, how often it was tried.

    [bold]scenefleet failures[/bold]
    [bold]scenefleet failures demo-1a2b3c4d --json[/bold]
    """
    from cli.videos import requests

    requests.show_failures(video, limit=limit, as_json=json_, user=user)


@app.command("upload-url", rich_help_panel=VIDEOS)
def upload_url(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="Id of the video to be.", show_default=False)],
    filename: Annotated[str, typer.Argument(metavar="NAME", help="Name of the file.")] = "video",
    expires: Annotated[
        int, typer.Option(metavar="SECONDS", min=1, max=604_800, help="The upload begins within these.")
    ] = 900,
    json_: Json = False,
    user: User = None,
) -> None:
    """Say where to store a file for a video: its storage key, and a URL to PUT it to where storage has URLs.

    Nothing is stored; send `tasks.video.process` with the key afterwards.

    [bold]scenefleet upload-url lecture-07 lecture.mkv[/bold]
    [bold]curl -T lecture.mkv "$(scenefleet upload-url lecture-07 lecture.mkv --json | jq -r .upload_url)"[/bold]
    """
    from cli.videos import requests

    requests.show_upload(video, filename, expires_s=expires, as_json=json_, user=user)


@app.command(rich_help_panel=VIDEOS)
def scenes(video: Video, json_: Json = False, user: User = None) -> None:
    """List a video's scenes with their words and faces."""
    from cli.videos import requests

    requests.show_scenes(video, as_json=json_, user=user)


@app.command(rich_help_panel=VIDEOS)
def subtitles(
    video: Video,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", "-f", show_default=False, help="`srt` or `vtt`. Default: by FILE's name, or srt."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here, not to stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    user: User = None,
) -> None:
    """Write what is said in a video as SRT or WebVTT subtitles.

    [bold]scenefleet subtitles demo-1a2b3c4d > demo.srt[/bold]
    [bold]scenefleet subtitles demo-1a2b3c4d -o demo.vtt[/bold]
    """
    from cli.videos import subtitles as command

    command.run(video, format, output, force=force, user=user)


@app.command(rich_help_panel=VIDEOS)
def search(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="What to look for.", show_default=False)
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", "-m", help="`hybrid`, `keyword` (as spoken) or `semantic` (by meaning).")
    ] = "hybrid",
    like: Annotated[
        str | None,
        typer.Option(metavar="VIDEO:#", show_default=False, help="More like this scene."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default=False, help="What looks like this picture.")
    ] = None,
    person: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHO",
            show_default=False,
            help="Scenes with this person, name or id. Repeatable: with any.",
        ),
    ] = None,
    all_persons: Annotated[bool, typer.Option("--all-persons", help="With every --person at once.")] = False,
    prefer_persons: Annotated[
        bool,
        typer.Option("--prefer-persons", help="A --person raises the score, and nobody has to be there."),
    ] = False,
    video: Annotated[
        list[str] | None, typer.Option(show_default=False, help="Only in this video. Repeatable.")
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", show_default=False, help="Only where this is spoken: en. Repeatable."),
    ] = None,
    from_: Annotated[
        float | None,
        typer.Option(
            "--from", metavar="SECONDS", min=0, show_default=False, help="Scenes that end after this."
        ),
    ] = None,
    to: Annotated[
        float | None,
        typer.Option(
            "--to", metavar="SECONDS", min=0, show_default=False, help="Scenes that begin before this."
        ),
    ] = None,
    indexed_from: Annotated[
        datetime | None,
        typer.Option(formats=_TIMES, show_default=False, help="Videos indexed at this time (UTC) or later."),
    ] = None,
    indexed_to: Annotated[
        datetime | None,
        typer.Option(formats=_TIMES, show_default=False, help="Videos indexed before this time (UTC)."),
    ] = None,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", metavar="NAME=VALUE", show_default=False, help="A filter of a plug-in. Repeatable."
        ),
    ] = None,
    text_model: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=False, help="Not by the active text model.")
    ] = None,
    vision_model: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=False, help="Not by the active vision model.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most hits.", show_default=False)] = None,
    min_score: Annotated[
        float | None, typer.Option(min=0, show_default=False, help="No hits that score less.")
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            "-w",
            metavar="LEG=NUMBER",
            show_default=False,
            help="Of text, vision, lexical, keyword, screen or people. Repeatable.",
        ),
    ] = None,
    rerank: Annotated[
        int | None,
        typer.Option(min=1, max=50, show_default=False, help="Read the best N hits again, for their order."),
    ] = None,
    cursor: Annotated[str | None, typer.Option(show_default=False, help="The next page of a search.")] = None,
    recall: Annotated[
        bool, typer.Option("--recall", help="Measure the index on your own vectors, search nothing.")
    ] = False,
    json_: Json = False,
    user: User = None,
) -> None:
    """Find scenes by words, meaning, sight, text on screen, and by who is there.

    [bold]scenefleet search rocket[/bold]
    [bold]scenefleet search '"space shuttle" or orbit -moon' --mode keyword[/bold]
    [bold]scenefleet search "a hot drink" --limit 5 --weight vision=0.6[/bold]
    [bold]scenefleet search --like demo-1a2b3c4d:3[/bold]
    """
    from cli.search import ask as command
    from cli.videos import requests

    owner = requests.acting_user(user)
    if recall:
        from cli.search import recall as recall_command

        recall_command.run(owner, as_json=json_)
        return
    command.run(
        owner,
        text,
        mode=mode,
        like=like,
        image=image,
        weights=weight or [],
        as_json=json_,
        video_ids=video or [],
        persons=person or [],
        persons_match=_persons_match(every=all_persons, prefer=prefer_persons),
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


def _persons_match(*, every: bool, prefer: bool) -> str:
    if every and prefer:
        from shared.errors import InvalidRequest

        raise InvalidRequest("--all-persons and --prefer-persons are mutually exclusive: give one of them")
    return "all" if every else "prefer" if prefer else "any"


@app.command(rich_help_panel=VIDEOS)
def retry(video: Video, json_: Json = False, user: User = None) -> None:
    """Try the failed jobs of a video again."""
    from cli.videos import requests

    requests.change("retry", video, as_json=json_, user=user)


@app.command(rich_help_panel=VIDEOS)
def rerun(
    video: Annotated[
        str | None,
        typer.Argument(
            metavar="[VIDEO]", show_default=False, help="Id of the video; all of yours with --missing alone."
        ),
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            "--stage", "-s", show_default=False, help="Repeat this stage and those after it. Repeatable."
        ),
    ] = None,
    missing: Annotated[
        bool,
        typer.Option("--missing", help="Only what was not made so far: the feature was off, or it failed."),
    ] = False,
    json_: Json = False,
    user: User = None,
) -> None:
    """Process a video again; it stays searchable as it was until the new run ends.

    [bold]scenefleet rerun demo-1a2b3c4d[/bold]
    [bold]scenefleet rerun demo-1a2b3c4d --stage face --stage text[/bold]
    [bold]scenefleet rerun --missing[/bold]
    """
    from cli.videos import requests

    requests.rerun(video, stage or [], missing=missing, as_json=json_, user=user)


@app.command(rich_help_panel=VIDEOS)
def cancel(video: Video, json_: Json = False, user: User = None) -> None:
    """Stop the work on a video; what an earlier run published stays."""
    from cli.videos import requests

    requests.change("cancel", video, as_json=json_, user=user)


@app.command(rich_help_panel=VIDEOS)
def delete(
    video: Video,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    json_: Json = False,
    user: User = None,
) -> None:
    """Delete a video and everything made from it: rows, vectors, pictures, sidecars, the upload."""
    from cli.videos import requests

    requests.delete(video, sure=yes, as_json=json_, user=user)


def main() -> NoReturn:
    """Run the command; every foreseen error is one sentence on stderr."""
    # The imports, most of a quick command's time, make objects that stay: the collector need not look at them again and again.
    gc.set_threshold(50_000, 20, 100)
    try:
        status = app(standalone_mode=False)
    except KeyboardInterrupt:
        status = ExitStatus.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last line of defence; each kind is told apart below
        status = _explain(error)
    # Nor when the process ends, which would take as long as a third of the imports.
    gc.freeze()
    sys.exit(status if isinstance(status, int) else 0)


def _explain(error: Exception) -> int:
    """Print what went wrong; returns the exit status."""
    from shared.errors import ScenefleetError

    if isinstance(error, ScenefleetError):
        return _fail(str(error), ExitStatus.FAILED)
    if isinstance(error, BrokenPipeError):
        # The reader of our output left (`scenefleet scenes x | head`): nobody to tell.
        sys.stderr.close()
        return ExitStatus.BROKEN_PIPE
    # Typer's usage errors; their class moved between its versions.
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        return _fail(format_message().rstrip(".") + hint, ExitStatus.USAGE)
    if isinstance(error, ModuleNotFoundError):
        return _fail(
            f'{error.name} is not installed: run `make install` in the checkout, or `pip install ".[lite,embedded]"`',
            ExitStatus.FAILED,
        )
    if isinstance(error, OSError):
        return _fail(f"{error.filename or 'system'}: {error.strerror or error}", ExitStatus.FAILED)
    from shared.settings import load_settings

    if load_settings().log_level == "DEBUG":
        raise error
    return _fail(
        f"internal error, {type(error).__name__}: {error}; SCENEFLEET_LOG_LEVEL=DEBUG shows where, please report it",
        ExitStatus.INTERNAL_ERROR,
    )


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"scenefleet: {message}\n")
    return status
