"""Who asks: the local user, a key, or a user whom a trusted proxy names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Request

from api.problems import Forbidden
from shared.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, and what they may do."""

    user_id: str
    #: Whether they may see and change what belongs to the fleet: models, nodes, queues.
    operator: bool
    how: Literal["local", "key", "proxy"]
    #: The key they have shown; None: another way.
    key_id: str | None = None


async def caller(request: Request) -> Caller:
    """The dependency of every route but health."""
    settings: Settings = request.app.state.settings
    return Caller(user_id=settings.user_id, operator=True, how="local")


async def operator(who: Annotated[Caller, Depends(caller)]) -> Caller:
    """The dependency of routes for operators."""
    if not who.operator:
        raise Forbidden(f"user {who.user_id} is no operator: ask for a key made with --operator")
    return who
