"""Vectors of scenes by one model, on their way to the database; shared by the stages that make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from db.active_models import active_models, kept_models
from db.ledger.model_runs import want_index
from db.vectors import ModelRow
from shared.errors import ModelFailure, ModelUnavailable
from shared.logs import get_logger
from worker.models.spec import ModelSpec
from worker.runtime import Runtime
from worker.stages.context import model_row
from worker.wakeup import notify

log = get_logger(__name__)

#: Models whose index this process has asked for.
_indexed: set[int] = set()


@dataclass(frozen=True)
class Made:
    """What one model made of some scenes. ``write`` takes a session, the run they count for, and which of the scenes."""

    row: ModelRow
    write: Callable[[Session, int, Sequence[UUID]], None]


def indexed_row(runtime: Runtime, spec: ModelSpec, *, again: bool = False) -> ModelRow:
    """The database's row of a model, after a job was queued for its index if it has none.

    ``again``: look also if this process has before.
    """
    row = runtime.transact(lambda session: model_row(session, spec))
    if again or row.model_id not in _indexed:
        notify(runtime.transact(lambda session: want_index(session, row.model_id, runtime.policy)))
        _indexed.add(row.model_id)
    return row


def made_if_here(make: Callable[[], Made], name: str) -> list[Made]:
    """What a model that is not active makes of some scenes; nothing where it can't be loaded: the switch adds it."""
    try:
        return [make()]
    except ModelUnavailable as error:
        log.warning("vectors left to the switch: its model is missing here", model=name, error=error)
        return []


def write_kept(
    session: Session, kind: str, made: Sequence[Made], run: int, scene_ids: Sequence[UUID]
) -> None:
    """Write what the models made that are kept now; ``made``: the active model's first, as it was when work began.

    Raises:
        ModelFailure: the active model is another one by now, and nothing was made by it.
    """
    kept = {row.model_id for row in kept_models(session, kind, lock=True)}
    active = active_models(session).get(kind, made[0].row)
    kept.add(active.model_id)
    if active.model_id not in {one.row.model_id for one in made}:
        raise ModelFailure(f"the active {kind} model became {active.name} while {made[0].row.name} worked")
    for one in made:
        if one.row.model_id in kept:
            one.write(session, run, scene_ids)
