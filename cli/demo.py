"""``python -m cli.demo [VIDEO] [--home DIR]``: the whole fleet once, from nothing to a found scene. ``make demo``.

Runs embedded servers and the models of profile `lite`, whatever the environment says, and stops everything at the end. The
next `up` shows its video: its home folder is that of `up`, unless one runs there or would use other servers or models.
With the sample it knows what is true (``samples/truth.json``) and exits 1 when a search is wrong.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from rich.console import Console
from rich.markup import escape

from cli import screen
from cli.connection import connect
from cli.fleet.up import ConsoleDisplay
from cli.search.ask import coverage_line, hit_table
from cli.videos.index import Upload, make_video_id, reasons, send, watch
from cli.videos.requests import all_scenes, scene_table
from local import node_plan
from local.fleet import Fleet
from local.home import Home, configured_settings
from local.up import Interrupted, Signals, wait_for_nodes
from shared import permissions
from shared.client import Client
from shared.contracts import SearchMode
from shared.errors import InvalidRequest, Outage, ScenefleetError
from shared.settings import Settings, get_settings, process_environment, set_process_environment
from shared.storage import configured_storage

SAMPLES = Path(__file__).parents[1] / "samples"
#: Where the home folder of `up` is not for the demo.
OWN_HOME = Path(".scenefleet/demo")
#: Replaces what the environment is configured for.
SERVERS = {
    "POSTGRES_URL": "",
    "REDIS_URL": "",
    "STORAGE_BACKEND": "local",
    "STORAGE_ROOT": "",
    "SCENEFLEET_PROFILE": "lite",
}
#: Without the API: its port may be that of an `up`.
NODES = "media,asr,text,vision,face,ocr,housekeeping,search"


class Query(NamedTuple):
    """A search, and the scene that has to come first if that is known."""

    text: str
    mode: SearchMode
    scene: int | None


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cli.demo", description="Index a video and search it.")
    parser.add_argument("video", nargs="?", type=Path, help="default: the sample")
    parser.add_argument("--home", type=Path, help="home folder; default: that of `scenefleet up`")
    return parser.parse_args(arguments)


def choose_home(settings: Settings) -> Path:
    """The home folder of `up` if its video would be found there later, else one of the demo's own."""
    elsewhere = settings.postgres_url or settings.redis_url or settings.storage_root is not None
    same = not elsewhere and (settings.storage_backend, settings.profile) == ("local", "lite")
    return settings.home if same and not Home(settings).is_locked() else OWN_HOME.absolute()


def next_steps(settings: Settings, home: Path, query: str | None) -> list[str]:
    """How to open what the demo has indexed.

    Args:
        settings: as they are configured, before the demo replaces some.
        query: what to search on the page; None: nothing.
    """
    changed = [
        f"{name}={value}" for name, value in SERVERS.items() if process_environment(name) not in (None, value)
    ]
    if home != settings.home:
        changed.append(f"SCENEFLEET_HOME={shlex.quote(str(home))}")
    lines = ["everything is stopped; the video stays indexed, and the next `up` shows it:"]
    lines.append("  " + " ".join([*changed, "make up"]))
    if node_plan.names_api(settings.nodes):
        search = "/?" + urlencode({"q": query}) if query else ""
        address = f"http://{settings.api_host}:{settings.api_port}{search}"
        lines.append(f"then open {address if settings.api_port else 'the address that it prints'}")
    return lines


def sample_queries() -> list[Query]:
    """The searches whose answers ``truth.json`` knows."""
    truth = json.loads((SAMPLES / "truth.json").read_text())
    return [Query(entry["query"], entry["mode"], entry["scene"]) for entry in truth["searches"]]


def own_queries(words: Sequence[str]) -> list[Query]:
    """Two searches for a video we know nothing about: its longest word, and a meaning."""
    longest = max(words, key=len, default="")
    return [Query(longest, "keyword", None)] * bool(longest) + [Query("a hot drink", "semantic", None)]


def show_search(client: Client, user: str, video_id: str, query: Query, console: Console) -> bool:
    """Run one search and show it; returns whether its first hit is right (or not known)."""
    answer = client.search(user, query.text, mode=query.mode, video_id=video_id, limit=3)
    console.print(f"\n[bold]search {query.mode}: {escape(query.text)}[/bold]")
    console.print(hit_table(answer) if answer.hits else "nothing found")
    console.print(f"[dim]{escape(coverage_line(answer))}[/dim]")
    if query.scene is None:
        return True
    first = answer.hits[0].idx if answer.hits else None
    verdict = "[green]right[/green]" if first == query.scene else "[red]wrong[/red]"
    console.print(f"first hit: scene {first}, should be scene {query.scene}: {verdict}")
    return first == query.scene


def run(video: Path, queries: list[Query] | None, fleet: Fleet, console: Console) -> bool:
    """Start, index, show, search; returns whether everything was right."""
    fleet.start(lambda line: console.print(f"[dim]{escape(line)}[/dim]", soft_wrap=True))
    down = [view for view in wait_for_nodes(fleet, ConsoleDisplay(console)) if view.state != "ready"]
    if down:
        raise Outage("; ".join(f"{view.name} {view.state}: {view.detail or view.log}" for view in down))
    settings = get_settings()
    client, user = connect()
    storage = configured_storage(settings)
    sent = Upload(path=video, video_id=make_video_id(video))
    console.print(f"\n[bold]index {escape(str(video))}[/bold]", soft_wrap=True)
    started = time.monotonic()
    send(client, storage, sent, user, 0, console)
    watch(client, [sent], user, console)
    wrong = reasons(sent)
    for reason in wrong:
        console.print(f"[red]{escape(reason)}[/red]", soft_wrap=True)
    if sent.status is None or not sent.status.scenes:
        return False
    page = all_scenes(client, sent.video_id, user)
    console.print(f"[dim]{sent.status.scenes} scenes in {time.monotonic() - started:.1f} s[/dim]\n")
    console.print(scene_table(page.scenes))
    if queries is None:
        queries = own_queries(" ".join(scene.transcript for scene in page.scenes).split())
    right = [show_search(client, user, sent.video_id, query, console) for query in queries]
    folder = settings.storage_dir / "sidecars"
    keys = [scene.sidecar_key for scene in page.scenes if scene.sidecar_key]
    console.print(f"\n{len(keys)} sidecars (one JSON file per scene) are in", soft_wrap=True)
    console.print(f"  {escape(str((folder / keys[0]).parent))}" if keys else "  nowhere", soft_wrap=True)
    return not wrong and all(right)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when every stage succeeded and every known search was right."""
    options = read_arguments(sys.argv[1:] if arguments is None else arguments)
    permissions.keep_private()
    console = screen.make_console()
    signals = Signals()
    video: Path = options.video or SAMPLES / "demo.mp4"
    status = 1
    steps: list[str] = []
    fleet: Fleet | None = None
    try:
        if not video.is_file():
            raise InvalidRequest(f"{str(video)!r} is no file: name a video")
        queries = sample_queries() if options.video is None else None
        configured = configured_settings()
        home: Path = options.home.absolute() if options.home else choose_home(configured)
        steps = next_steps(configured, home, queries[-1].text if queries else None)
        for name, value in {**SERVERS, "SCENEFLEET_NODES": NODES, "SCENEFLEET_HOME": str(home)}.items():
            set_process_environment(name, value)
        fleet = Fleet(configured_settings())
        status = 0 if run(video, queries, fleet, console) else 1
    except Interrupted as stop:
        status = 128 + stop.number
    except ScenefleetError as error:
        sys.stderr.write(f"scenefleet: {error}\n")
    signals.begin_stop()
    if fleet is not None and fleet.home.owned:
        fleet.stop()
        for line in ["", *(steps if status == 0 else ["everything is stopped"])]:
            console.print(escape(line), soft_wrap=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
