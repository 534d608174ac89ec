"""The waiting requests of a node, and the choice of the next batch. Pure: no Celery, no clock, no Redis."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: A request gets at most this share of a batch in each round, so that a large one does not delay the others.
_ROUNDS = 4


@dataclass(eq=False)
class Waiting:
    """A request and how much of it is done."""

    #: Celery's; opaque here.
    request: Any
    task: str
    #: Estimated tokens per item.
    tokens: Sequence[int]
    #: Maximum number of its items in one batch.
    most: int
    #: When it came, seconds on any clock.
    since_s: float = 0.0
    #: Whether its caller reserved its items (shared/admission.py).
    is_reserved: bool = True
    #: Items handed out.
    taken: int = 0
    #: Batches whose process died or hung. After one, it is computed alone.
    losses: int = 0
    #: What children returned of its earlier parts, packed by them.
    outputs: list[bytes] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.tokens) - self.taken

    @property
    def tokens_left(self) -> int:
        return sum(self.tokens[self.taken :])


class Part(NamedTuple):
    """Items ``first`` to ``end`` (exclusive) of a request, in one batch."""

    waiting: Waiting
    first: int
    end: int

    @property
    def last(self) -> bool:
        return self.end >= len(self.waiting.tokens)


class Buffer:
    """Requests in the order of their arrival; one that is being computed is not in it."""

    def __init__(self) -> None:
        self._queue: deque[Waiting] = deque()
        #: Items and estimated tokens that wait.
        self.items = 0
        self.tokens = 0
        #: Items of callers that reserved none.
        self.unreserved_items = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def oldest(self) -> Waiting | None:
        return self._queue[0] if self._queue else None

    def add(self, waiting: Waiting) -> None:
        """Append a request, or the rest of one."""
        self._queue.append(waiting)
        self._count(waiting, 1)

    def put_back(self, part: Part) -> None:
        """Put a part whose process died before all others; it will be computed alone."""
        waiting = part.waiting
        waiting.taken = part.first
        waiting.losses += 1
        self._queue.appendleft(waiting)
        self._count(waiting, 1)

    def remove(self, waiting: Waiting) -> None:
        """Remove a request that has an answer."""
        self._queue.remove(waiting)
        self._count(waiting, -1)

    def take(self, size: int, tokens: int) -> list[Part]:
        """Remove and return the next batch: at most ``size`` items of one task, of about ``tokens`` tokens together.

        In rounds: each request in turn gets a quarter of the batch, until it is full. An item over ``tokens`` goes alone.
        """
        first = self.oldest
        if first is None:
            return []
        size = min(size, first.most)
        if first.losses:
            parts = self._fill([first], size, tokens)
        else:
            parts = self._fill(
                [waiting for waiting in self._queue if waiting.task == first.task and not waiting.losses],
                size,
                tokens,
            )
        chosen = {part.waiting for part in parts}
        self._queue = deque(waiting for waiting in self._queue if waiting not in chosen)
        for part in parts:
            self._count(part.waiting, -1)
            part.waiting.taken = part.end
        return parts

    def _fill(self, candidates: list[Waiting], size: int, tokens: int) -> list[Part]:
        share = max(1, size // _ROUNDS)
        ends: dict[Waiting, int] = {}
        items = used = 0
        turn = deque(candidates)
        while turn and items < size and len(ends) <= size:
            waiting = turn.popleft()
            end = ends.get(waiting, waiting.taken)
            for cost in waiting.tokens[end : end + min(share, size - items)]:
                if items and used + cost > tokens:
                    return [Part(waiting, waiting.taken, end) for waiting, end in ends.items()]
                items, used, end = items + 1, used + cost, end + 1
                ends[waiting] = end
            # A request without items has one part, too.
            ends.setdefault(waiting, end)
            if end < len(waiting.tokens):
                turn.append(waiting)
        return [Part(waiting, waiting.taken, end) for waiting, end in ends.items()]

    def _count(self, waiting: Waiting, sign: int) -> None:
        self.items += sign * waiting.left
        self.tokens += sign * waiting.tokens_left
        if not waiting.is_reserved:
            self.unreserved_items += sign * waiting.left
