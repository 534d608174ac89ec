"""Reads the active model of each kind, and the models whose vectors are kept."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.tables import ActiveModel, Model, ModelSwitch
from db.vectors import ModelRow, model_row

#: States of a switch in which both models are kept.
KEPT = ("building", "ready", "activated")


def active_models(session: Session) -> dict[str, ModelRow]:
    """Kind -> the model that a switch has activated; kinds that were never switched are absent."""
    rows = select(ActiveModel.kind, Model).join(Model, Model.model_id == ActiveModel.model_id)
    return {kind: model_row(model) for kind, model in session.execute(rows)}


def searched_model(session: Session, kind: str) -> int | None:
    """The id of the active model; None: there never was a switch."""
    return session.scalars(select(ActiveModel.model_id).where(ActiveModel.kind == kind)).one_or_none()


def models_of(session: Session, switch: ModelSwitch) -> tuple[ModelRow, ModelRow]:
    """The old model and the new one."""
    old, new = (session.get_one(Model, model) for model in (switch.from_model, switch.to_model))
    return model_row(old), model_row(new)


def kept_models(session: Session, kind: str, *, lock: bool = False) -> tuple[ModelRow, ...]:
    """The two models of an open switch; empty when there is none, or one of them is being discarded.

    ``lock``: no vectors are discarded before the end of this transaction.
    """
    query = select(ModelSwitch).where(ModelSwitch.kind == kind, ModelSwitch.state.in_(KEPT))
    if lock:
        query = query.with_for_update(read=True, key_share=True)
    switch = session.scalars(query, execution_options={"populate_existing": True}).one_or_none()
    return () if switch is None else models_of(session, switch)
