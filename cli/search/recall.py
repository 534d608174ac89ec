"""``scenefleet search --recall``: recall of the vector index, measured on the user's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

from cli import screen
from cli.connection import acting_user
from db.engine import reading
from db.search import recall
from shared.settings import get_settings

_QUERIES = 50


def run(*, user: str | None, as_json: bool) -> None:
    """Measure every model the user has vectors of, and show it."""
    settings, owner = get_settings(), acting_user(user)
    with reading() as session:
        measured = []
        for model, vectors in recall.stored_models(session, owner):
            queries = recall.sample(session, owner, model, _QUERIES)
            ef_search = settings.search_ef
            measured.append(recall.measure(session, owner, model, vectors, queries, ef_search=ef_search))
    document = {"models": [asdict(one) for one in measured]}
    nothing = "no vectors yet: index a video first"
    screen.answer(document, lambda: _table(measured) if measured else nothing, as_json=as_json)
    if measured and not as_json:
        exact = f"up to SEARCH_EXACT_ROWS={settings.search_exact_rows:,} vectors a search compares exactly"
        screen.tell(f"SEARCH_EF_SEARCH={settings.search_ef}, {exact}", style="dim")


def _table(measured: Sequence[recall.Recall]) -> Table:
    table = screen.make_table("~model", ">vectors", ">recall@10", ">exact p50", ">p95", ">index p50", ">p95")
    for one in measured:
        times = (one.exact_p50_ms, one.exact_p95_ms, one.index_p50_ms, one.index_p95_ms)
        shown = (f"{value:.1f} ms" for value in times)
        table.add_row(one.model, f"{one.vectors:,}", f"{one.recall:.3f}", *shown)
    return table
