"""``scenefleet api``: its options and help; what it does is imported when it runs."""

from __future__ import annotations

import typer

api_app = typer.Typer(rich_markup_mode="rich")


@api_app.command("api")
def api() -> None:
    """Serve the HTTP API and the page until Ctrl-C (`up` does it for you).

    Listens on API_HOST and API_PORT, by default http://127.0.0.1:8080, for the one user SCENEFLEET_USER. For others,
    set API_KEYS=true (see `scenefleet keys`) or API_USER_HEADER (a proxy that signs people in).

      [bold]scenefleet api[/bold]
      [bold]API_PORT=9000 SCENEFLEET_USER=ann scenefleet api[/bold]
      [bold]API_HOST=0.0.0.0 API_KEYS=true REDIS_URL=... scenefleet api[/bold]
    """
    from cli.api import serve

    serve.run()
