"""Sends the message that finishes a search which waited for other nodes."""

from __future__ import annotations

from shared import routing
from worker.app import app
from worker.search.wait import Pending


def send_finish(pending: Pending, search: str) -> None:
    """Let a search node answer it with what there is, under the id its caller looks for. Again does no harm."""
    state = pending.state(search)
    if state is None:
        return
    app.send_task(
        routing.SEARCH_FINISH,
        kwargs={"search": search},
        task_id=state["task_id"],
        queue=routing.REQUESTS,
        retry=False,
        **state["options"],
    )
