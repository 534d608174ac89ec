"""Answers ``embed_texts`` in the caller's process while the fleet does not answer, if the caller asked for it."""

from __future__ import annotations

import time
from typing import TypeVar, cast

from pydantic import BaseModel

from . import routing
from .calls import Call
from .contracts import EncodeTexts
from .contracts.base import parse
from .errors import Outage
from .local_models import TextEmbedder

A = TypeVar("A", bound=BaseModel)

#: After an outage the fleet is not asked for this long, seconds: not every call should wait for its time limit.
AWAY_S = 10.0


class Fallback:
    """The local model of one client, and whether the fleet was away a moment ago."""

    def __init__(self, embed: TextEmbedder | None) -> None:
        self._embed = embed
        self._away_until_s = float("-inf")

    def takes(self, call: Call[A], error: Exception | None = None) -> bool:
        """Whether to answer a call here: after ``error``, or because an earlier one is recent."""
        if self._embed is None or call.task != routing.TEXT_EMBED:
            return False
        if isinstance(error, Outage):
            self._away_until_s = time.monotonic() + AWAY_S
        return time.monotonic() < self._away_until_s

    def answer(self, call: Call[A]) -> A:
        """The answer of the local model, without lexical weights.

        Raises:
            Outage: the call names a model, and the local one is another.
        """
        assert self._embed is not None
        request = parse(EncodeTexts, call.kwargs)
        found = self._embed(request.texts)
        if request.model not in (None, found.model):
            raise Outage(
                f"the fleet does not answer, and the fallback has the model {found.model!r}, not {request.model!r}:"
                " ask again later, or for any model"
            )
        return cast("A", found)
