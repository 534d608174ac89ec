"""Vectors of scenes by one model, on their way to the database; shared by the stages that make them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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

#: (model, user) -> when this process last looked whether the user's searches have their index. Few: a user at work is one.
_looked: OrderedDict[tuple[int, str], float] = OrderedDict()
_LOOK_S, _LOOKED = 60.0, 1000


@dataclass(frozen=True)
class Made:
    """What one model made of some scenes. ``write`` takes a session, the run they count for, and which of the scenes."""

    row: ModelRow
    write: Callable[[Session, int, Sequence[UUID]], None]


def indexed_row(runtime: Runtime, spec: ModelSpec, user_id: str, *, again: bool = False) -> ModelRow:
    """The database's row of a model, after a job was queued for the index that searches of this user need, if it lacks.

    ``again``: look also if this process has within the last minute.
    """
    row = runtime.transact(lambda session: model_row(session, spec))
    key, now = (row.model_id, user_id), time.monotonic()
    if again or now - _looked.get(key, -_LOOK_S) >= _LOOK_S:
        want = partial(
            want_index,
            model_id=row.model_id,
            policy=runtime.policy,
            user_id=user_id,
            exact_rows=runtime.settings.search_exact_rows,
        )
        notify(runtime.transact(want))
        _looked[key] = now
        _looked.move_to_end(key)
        while len(_looked) > _LOOKED:
            _looked.popitem(last=False)
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
