"""``scenefleet models``: its commands, options and help; what a command does is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json, User

models_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The models: which there are, fetch their weights, check them, control a node's, switch to another.",
)

OnNodes = Annotated[
    list[str] | None,
    typer.Option(
        "--node",
        "-n",
        help="On this node only, `text@box` or `text`. Repeatable. Default: every one of the model's family.",
    ),
]
ControlTimeout = Annotated[
    float, typer.Option(min=0, help="Seconds to wait until it is done; the nodes go on after that.")
]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")]
ModelNames = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME...]", help="Names of models. Default: the active ones.")
]
OfProfile = Annotated[str | None, typer.Option("--profile", help="The models of this profile.")]


@models_app.command("list")
def models_list(json_: Json = False) -> None:
    """Show the models of the catalogue: what for, how large, under which licence, whether their files are here."""
    from cli.models import files

    files.show_list(as_json=json_)


@models_app.command("info")
def models_info(name: ModelName, json_: Json = False) -> None:
    """Show everything about one model: its files, their paths, their checksums and where these are stated."""
    from cli.models import files

    files.show_info(name, as_json=json_)


@models_app.command("pull")
def models_pull(
    names: ModelNames = None,
    profile: OfProfile = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Take the newest revision, and accept files that models.lock knows otherwise."
        ),
    ] = False,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Accept files whose sha256 models.yaml does not state, without asking."),
    ] = False,
    json_: Json = False,
) -> int:
    """Fetch the weights of models into MODELS_DIR; without NAME the active models of SCENEFLEET_PROFILE.

    An interrupted pull goes on where it ended. What was pulled is recorded in models.lock and checked from then on.
    A file whose sha256 models.yaml does not state is shown, with its commit, and taken once you trust it.

      [bold]scenefleet models pull --profile full[/bold]
      [bold]scenefleet models pull whisper-turbo bge-m3[/bold]
    """
    from cli.models import files

    return files.run_pull(names or [], profile, update=update, trust=trust, as_json=json_)


@models_app.command("verify")
def models_verify(names: ModelNames = None, profile: OfProfile = None, json_: Json = False) -> int:
    """Compute the sha256 of every file of models; exit 1 when one is missing, wrong or without a known checksum."""
    from cli.models import files

    return files.run_verify(names or [], profile, as_json=json_)


@models_app.command("status")
def models_status(node: OnNodes = None, json_: Json = False) -> int:
    """Show the models running nodes hold: state, memory measured, load and warm-up time, loads, evictions, last use.

    [bold]scenefleet models status[/bold]
    [bold]scenefleet models status --node text@box --json[/bold]
    """
    from cli.models import control

    return control.show_status(node or [], as_json=json_)


def _add_control(verb: str, help: str) -> None:
    @models_app.command(verb, help=help)
    def command(
        name: ModelName, node: OnNodes = None, timeout: ControlTimeout = 600, json_: Json = False
    ) -> int:
        from cli.models import control

        return control.run(verb, name, node or [], timeout_s=timeout, as_json=json_)


_add_control(
    "load",
    """Load a model on running nodes now; under WORKER_MODEL_MEMORY_MB the least recently used make room.

    [bold]scenefleet models load bge-reranker-v2-m3[/bold]
    [bold]scenefleet models load faster-whisper-medium --node asr@box[/bold]
    """,
)
_add_control(
    "unload",
    """Free a model on running nodes, after the call in work; the next job that needs it loads it again.

    [bold]scenefleet models unload bge-reranker-v2-m3[/bold]
    """,
)
_add_control(
    "warmup",
    """Load a model on running nodes if it is not, and run its warm-up samples.

    [bold]scenefleet models warmup all-minilm-l6-v2 --node text[/bold]
    """,
)


@models_app.command("switch")
def models_switch(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="text or vision.")],
    to: Annotated[str | None, typer.Option("--to", help="Name of the new model in models.yaml.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many scenes and how long; change nothing.")
    ] = False,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="Compare both models on the queries of this file, one a line. Default: words from the user's own scenes."
        ),
    ] = None,
    hold: Annotated[
        bool, typer.Option("--hold", help="Build and compare, and leave the old one active.")
    ] = False,
    activate: Annotated[
        bool, typer.Option("--activate", help="Search by the new model (after --hold or --rollback).")
    ] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Search by the old model again, at once.")
    ] = False,
    discard: Annotated[
        bool,
        typer.Option(
            "--discard", help="Remove the vectors of the model that is not active; ends the switch."
        ),
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="With --discard: also within 15 minutes of an activation.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed parts again.")] = False,
    user: User = None,
    json_: Json = False,
) -> None:
    """Change the model the archive is searched by, while searches go on; without an option: how it stands.

    The new model's vectors are made beside the old ones by jobs of low priority. Then both are compared, and searches
    use the new one. Given again after an interruption, the command goes on where it was.

      [bold]scenefleet models switch text --to bge-m3 --dry-run[/bold]
      [bold]scenefleet models switch text --to bge-m3 --queries queries.txt[/bold]
      [bold]scenefleet models switch text --rollback[/bold]
    """
    from cli.models import switch

    acts = {"activate": activate, "rollback": rollback, "discard": discard, "retry": retry}
    chosen = [name for name, wanted in acts.items() if wanted]
    how = {"dry_run": dry_run, "queries": queries, "hold": hold}
    switch.run(kind, to, chosen, now=now, user=user, as_json=json_, **how)
