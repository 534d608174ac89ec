"""``scenefleet search --recall``: what the index finds of the truly nearest, on the user's own vectors."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Table

from cli import screen
from db.engine import reading
from db.search import recall
from shared.settings import get_settings

_QUERIES = 50


def run(user: str, *, as_json: bool) -> None:
    """Measure every model the user has vectors of, and show it."""
    settings = get_settings()
    with reading() as session:
        measured = [
            recall.measure(
                session,
                user,
                model,
                vectors,
                recall.sample(session, user, model, _QUERIES),
                ef_search=settings.search_ef,
            )
            for model, vectors in recall.stored_models(session, user)
        ]
    if as_json:
        screen.write_json({"models": [asdict(one) for one in measured]})
        return
    console = screen.make_console()
    if not measured:
        console.print("no vectors yet: index a video first")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("model", "vectors", "recall@10", "exact p50", "p95", "index p50", "p95"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=name != "model")
    for one in measured:
        table.add_row(
            one.model,
            f"{one.vectors:,}",
            f"{one.recall:.3f}",
            *(
                f"{value:.1f} ms"
                for value in (one.exact_p50_ms, one.exact_p95_ms, one.index_p50_ms, one.index_p95_ms)
            ),
        )
    console.print(table)
    at = f"SEARCH_EF_SEARCH={settings.search_ef}, up to SEARCH_EXACT_ROWS={settings.search_exact_rows:,} vectors"
    screen.make_console(stderr=True).print(f"[dim]{at} a search compares exactly[/dim]")
