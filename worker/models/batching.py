"""Groups items of similar length into batches, and halves batches that exceed the device's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from shared.errors import DeviceOutOfMemory
from shared.logs import get_logger
from worker.models.placement.devices import free_cache, is_out_of_memory

log = get_logger(__name__)


def by_length(lengths: Sequence[int], batch: int, *, padded: int | None = None) -> Iterator[list[int]]:
    """Indices of items to compute together, the shortest first: at most `batch`, of similar length.

    Padding costs as much as text, so a group also ends where the next text is over a quarter (and 8 tokens) longer than
    its first: one long text among short ones would make all of them as expensive as the longest one.

    Args:
        padded: maximum tokens of a group, padding included: a batch of the longest texts takes much more memory than one of
            short ones. An item longer than that goes alone.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        length = lengths[index]
        too_long = length > lengths[group[0]] * 1.25 + 8 if group else False
        too_many = padded is not None and (len(group) + 1) * length > padded
        if group and (len(group) == batch or too_long or too_many):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def in_order(count: int, batch: int) -> Iterator[list[int]]:
    """Indices of `count` items of one size, `batch` at a time."""
    for first in range(0, count, batch):
        yield list(range(first, min(first + batch, count)))


def compute(groups: Iterable[list[int]], work: Callable[[list[int]], None], *, model: str) -> None:
    """Run `work` on each group; one that fills the device's memory is halved, and so are those after it.

    Raises: DeviceOutOfMemory when one item alone does not fit. What else `work` raises passes through.
    """
    limit: int | None = None
    for group in groups:
        waiting = [group]
        while waiting:
            now = waiting.pop()
            if limit is not None and len(now) > limit:
                waiting += [now[limit:], now[:limit]]
                continue
            try:
                work(now)
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            # Outside the `except`: the traceback would keep the failed batch's tensors alive.
            free_cache()
            if len(now) == 1:
                raise DeviceOutOfMemory(
                    f"Model {model} ran out of device memory on one item: free memory on its GPU, or use a larger one"
                    f" ({reason})"
                )
            limit = len(now) // 2
            log.warning("batch halved: the device's memory is full", model=model, batch=len(now), now=limit)
            waiting.append(now)
