"""What the online request tasks compute: one ``Operation`` per task, registered by its module in tasks/."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from shared.admission import estimate_tokens
from shared.contracts.base import Contract
from shared.contracts.inference import MAX_ITEMS
from shared.errors import InvalidRequest

C = TypeVar("C", bound=Contract)

#: Models read 8192 tokens at most; a tokenizer takes a second for two million characters.
MAX_TEXT_CHARS = 65_536
_SHOWN_CHARS = 60


class Used(NamedTuple):
    """The model that has computed an answer."""

    model: str
    revision: str
    device: str
    #: Length of its vectors; None: it makes none.
    dim: int | None


def used_by(model: Any, dim: int | None = None) -> Used:
    """What an answer says about a loaded model; ``dim``: the length of its vectors."""
    return Used(model.spec.name, model.spec.revision, model.placement.device, dim)


class Computed(NamedTuple):
    used: Used
    #: One per item; an exception instead where an item failed.
    outputs: list[Any]


@dataclass(frozen=True, kw_only=True)
class Operation(Generic[C]):
    """How requests of one task are computed together."""

    contract: type[C]
    #: The lists of the payload of which one is cut into parts.
    fields: tuple[str, ...]
    #: Maximum number of items in one batch; None: BATCH_SIZE.
    most: int | None = None
    #: Reads or checks some items of one request (request, first, end): one prepared item or exception each.
    prepare: Callable[[C, int, int], list[Any]]
    #: Requests with equal options are computed together.
    options: Callable[[C], Hashable]
    #: Computes prepared items of one or more requests.
    compute: Callable[[Any, list[Any]], Computed]
    #: The answer to one request, from an output per item; None for an item that failed.
    answer: Callable[[C, Used, list[Any]], dict[str, Any]]

    def count_tokens(self, payload: Mapping[str, Any]) -> list[int]:
        """The estimated tokens of each item, of a payload that has not been checked."""
        lists = [payload[field] for field in self.fields if isinstance(payload.get(field), list)]
        # An empty list may stand beside the one that is used.
        items = max(lists, key=len, default=[None])
        # Too long a list is refused as a whole.
        return [estimate_tokens(item) for item in items] if len(items) <= MAX_ITEMS else [1]


#: Task name -> operation.
OPERATIONS: dict[str, Operation[Any]] = {}


def checked_texts(field: str, texts: Sequence[str], first: int, end: int) -> list[Any]:
    """Some texts of a request; an error instead of one that is no text. Cut to what a model reads at most."""
    return [check_text(f"{field}.{place}", texts[place]) for place in range(first, min(end, len(texts)))]


def check_text(name: str, text: str) -> str | InvalidRequest:
    if "\x00" in text:
        shown = repr(text) if len(text) <= _SHOWN_CHARS else repr(text[:_SHOWN_CHARS]) + "..."
        return InvalidRequest(f"{name}={shown} is not acceptable: send text without NUL characters")
    return text[:MAX_TEXT_CHARS]
