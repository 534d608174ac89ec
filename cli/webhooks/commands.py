"""``scenefleet webhooks``: its commands, options and help; what a command does is imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import Json, User

webhooks_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""
    URLs that are told when a video has ended or a person was found, signed as www.standardwebhooks.com says.

      [bold]scenefleet webhooks add https://example.com/hook[/bold]
      [bold]scenefleet webhooks deliveries --state failed[/bold]
      [bold]scenefleet webhooks resend 17[/bold]
    """,
)

Webhook = Annotated[str, typer.Argument(metavar="WEBHOOK_ID", help="As `webhooks list` shows it.")]


@webhooks_app.command("add")
def webhooks_add(
    url: Annotated[str, typer.Argument(metavar="URL", help="An https URL.")],
    event: Annotated[
        list[str] | None,
        typer.Option(
            "--event",
            help="Only this event, several times for several: `video.indexed`, `video.partial`, `video.failed`,"
            " `video.cancelled`, `person.found`.",
        ),
    ] = None,
    secret: Annotated[
        str | None, typer.Option(help="`whsec_` and 24 to 64 bytes in base64. Default: a new one.")
    ] = None,
    json_: Json = False,
    user: User = None,
) -> None:
    """Add a webhook, or change the one of this URL, and print its secret, which is not shown again.

    [bold]scenefleet webhooks add https://example.com/hook --event video.indexed --event video.failed[/bold]
    """
    from cli.webhooks import webhooks

    webhooks.add(url, event or [], secret, as_json=json_, user=user)


@webhooks_app.command("list")
def webhooks_list(json_: Json = False, user: User = None) -> None:
    """List the webhooks, without their secrets.

    [bold]scenefleet webhooks list --json[/bold]
    """
    from cli.webhooks import webhooks

    webhooks.show_list(as_json=json_, user=user)


@webhooks_app.command("remove")
def webhooks_remove(webhook_id: Webhook, json_: Json = False, user: User = None) -> None:
    """Remove a webhook and its deliveries.

    [bold]scenefleet webhooks remove 0f8c3e1d5a7b4c6f9e2d1b0a8c7f6e5d[/bold]
    """
    from cli.webhooks import webhooks

    webhooks.remove(webhook_id, as_json=json_, user=user)


@webhooks_app.command("deliveries")
def webhooks_deliveries(
    webhook: Annotated[str | None, typer.Option(metavar="WEBHOOK_ID", help="Only of this webhook.")] = None,
    state: Annotated[
        str | None, typer.Option(help="Only `pending`, `delivered` or `failed` deliveries.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 100,
    json_: Json = False,
    user: User = None,
) -> None:
    """List what was sent or is to be sent, newest first.

    [bold]scenefleet webhooks deliveries --state failed[/bold]
    """
    from cli.webhooks import webhooks

    webhooks.show_deliveries(webhook, state, limit, as_json=json_, user=user)


@webhooks_app.command("resend")
def webhooks_resend(
    delivery_id: Annotated[
        int, typer.Argument(metavar="DELIVERY_ID", min=1, help="As `webhooks deliveries` shows it.")
    ],
    json_: Json = False,
    user: User = None,
) -> None:
    """Send an event again, with the same id.

    [bold]scenefleet webhooks resend 17[/bold]
    """
    from cli.webhooks import webhooks

    webhooks.resend(delivery_id, as_json=json_, user=user)
