"""``scenefleet up|down|node|node-health|scale|exporter``: options and help; what a command does is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

fleet_app = typer.Typer()

Family = Annotated[str, typer.Argument(help="media, asr, text, vision, face, ocr, housekeeping or search.")]


@fleet_app.command()
def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Run in the background, return when ready.")
    ] = False,
) -> int:
    """Run the fleet on this machine until Ctrl-C.

    Without POSTGRES_URL and REDIS_URL it brings its own Postgres and Redis, with their data in SCENEFLEET_HOME
    (default ~/.scenefleet). Starts one node per family of SCENEFLEET_NODES and starts a dead one again.

      [bold]scenefleet up[/bold]
      [bold]SCENEFLEET_NODES=media:2,asr:4,text,housekeeping,search scenefleet up --detach[/bold]
      [bold]SCENEFLEET_NODES=media:2,asr@0+1,text@0,vision@1,face@1,housekeeping,search scenefleet up[/bold]
    """
    from cli.fleet import up as command

    return command.run_detached() if detach else command.run_foreground()


@fleet_app.command()
def down() -> int:
    """Stop the fleet that `up` runs here; unfinished jobs continue at the next `up`."""
    from cli.fleet import up as command

    return command.run_down()


@fleet_app.command()
def node(
    family: Family,
    name: Annotated[str | None, typer.Option(help="Name of this instance. Default: the family.")] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency", "-c", min=1, max=256, help="Processes. Default: 1 (search: 4), or one per GPU."
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="GPUs, one per process: 0,1 or UUIDs or MIG-... names. Default: SCENEFLEET_GPUS."),
    ] = None,
    starts: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Become one worker node of a family (containers run this; `up` does it for you).

    [bold]POSTGRES_URL=... REDIS_URL=... scenefleet node asr --concurrency 4[/bold]
    [bold]POSTGRES_URL=... REDIS_URL=... scenefleet node asr --gpu 0,1[/bold]
    """
    from local import node as command

    command.run(family, name, concurrency, gpu, starts)


@fleet_app.command()
def scale(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which families need more nodes, and why: by their requests of the last five minutes and their backlog."""
    from cli.fleet import scale as command

    command.run(as_json=as_json)


@fleet_app.command()
def exporter() -> None:
    """Serve the metrics of the whole fleet for Prometheus until Ctrl-C, on METRICS_HOST and METRICS_PORT (9464).

    /targets lists the nodes that serve metrics, for Prometheus's HTTP service discovery.
    """
    from cli.fleet import exporter as command

    command.run()


@fleet_app.command("node-health")
def node_health(
    family: Family,
    name: Annotated[str | None, typer.Option(help="Name of the instance. Default: any.")] = None,
) -> None:
    """Exit 0 when a node of the family on this host is ready (for container health checks)."""
    from local import node as command

    command.health(family, name)
