"""Commands about videos: their options and help; what a command does is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json, Sure, User

videos_app = typer.Typer()

Video = Annotated[str, typer.Argument(metavar="VIDEO", help="Id of the video.")]


@videos_app.command()
def index(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Video files.")],
    video_id: Annotated[
        str | None, typer.Option("--id", help="Id of the video (one file). Default: made from its name.")
    ] = None,
    priority: Annotated[
        int, typer.Option(min=0, max=9, help="0 to 9, higher goes first among your videos.")
    ] = 0,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return when the fleet has accepted it.")
    ] = False,
    json_: Json = False,
    user: User = None,
) -> int:
    """Upload videos, and watch until they are indexed.

    Exits 1 when a video ends failed, partial or cancelled, and says why. Ctrl-C stops watching, not the work.

      [bold]scenefleet index film.mp4[/bold]
      [bold]scenefleet index --no-wait *.mp4[/bold]
      [bold]scenefleet index lecture.mkv --id lecture-07 --json[/bold]
    """
    from cli.videos import index as command

    return command.run(files, video_id, priority=priority, wait=not no_wait, as_json=json_, user=user)


@videos_app.command()
def status(
    video: Annotated[str | None, typer.Argument(metavar="[VIDEO]", help="Id of the video.")] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATE",
            help="List only videos that are `uploaded`, `processing`, `indexed`, `partial`, `failed` or `cancelled`. Repeatable.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most videos to list, newest first.")] = 50,
    json_: Json = False,
    user: User = None,
) -> None:
    """Show the state of a video, stage by stage; without VIDEO, list your videos.

    [bold]scenefleet status[/bold]
    [bold]scenefleet status --state failed --state partial[/bold]
    [bold]scenefleet status demo-1a2b3c4d[/bold]
    """
    from cli.videos import requests

    if video is None:
        requests.show_list(states=state or [], limit=limit, as_json=json_, user=user)
    else:
        requests.show_status(video, as_json=json_, user=user)


@videos_app.command()
def failures(
    video: Annotated[str | None, typer.Argument(metavar="[VIDEO]", help="Only of this video.")] = None,
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


@videos_app.command("upload-url")
def upload_url(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="Id of the video to be.")],
    filename: Annotated[str, typer.Argument(metavar="NAME", help="Name of the file.")] = "video",
    expires: Annotated[
        int,
        typer.Option(metavar="SECONDS", min=1, max=604_800, help="The upload has to begin within this time."),
    ] = 900,
    json_: Json = False,
    user: User = None,
) -> None:
    """Show where to store a video: its storage key, and a URL to PUT it to if the storage has URLs.

    Nothing is stored; send `tasks.video.process` with the key afterwards.

    [bold]scenefleet upload-url lecture-07 lecture.mkv[/bold]
    [bold]curl -T lecture.mkv "$(scenefleet upload-url lecture-07 lecture.mkv --json | jq -r .upload_url)"[/bold]
    """
    from cli.videos import requests

    requests.show_upload(video, filename, expires_s=expires, as_json=json_, user=user)


@videos_app.command()
def scenes(video: Video, json_: Json = False, user: User = None) -> None:
    """List a video's scenes with their words and faces."""
    from cli.videos import requests

    requests.show_scenes(video, as_json=json_, user=user)


@videos_app.command()
def subtitles(
    video: Video,
    format: Annotated[
        str | None, typer.Option("--format", "-f", help="`srt` or `vtt`. Default: by FILE's name, or srt.")
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


@videos_app.command()
def retry(video: Video, json_: Json = False, user: User = None) -> None:
    """Try the failed jobs of a video again."""
    from cli.videos import requests

    requests.change("retry", video, as_json=json_, user=user)


@videos_app.command()
def rerun(
    video: Annotated[
        str | None,
        typer.Argument(metavar="[VIDEO]", help="Id of the video; all of yours with --missing alone."),
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", "-s", help="Repeat this stage and those after it. Repeatable."),
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


@videos_app.command()
def cancel(video: Video, json_: Json = False, user: User = None) -> None:
    """Stop the work on a video; what an earlier run published stays."""
    from cli.videos import requests

    requests.change("cancel", video, as_json=json_, user=user)


@videos_app.command()
def delete(video: Video, yes: Sure = False, json_: Json = False, user: User = None) -> None:
    """Delete a video and everything made from it: rows, vectors, pictures, sidecars, the upload."""
    from cli.videos import requests

    requests.delete(video, sure=yes, as_json=json_, user=user)
