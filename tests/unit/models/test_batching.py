"""Batches: of like length together, and halved when the device's memory is full."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from itertools import chain

import pytest
import torch
from hypothesis import given, strategies as st

from shared.errors import DeviceOutOfMemory, ModelFailure
from worker.models import batching
from worker.models.batching import by_length, compute, in_order


class Device:
    """Room for so many items at a time; raises torch's own error beyond that."""

    def __init__(self, room: int, error: Callable[[], Exception] | None = None) -> None:
        self.room = room
        self.tried: list[list[int]] = []
        self.done: list[int] = []
        self._error = error or (
            lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        )

    def work(self, group: list[int]) -> None:
        self.tried.append(group)
        if len(group) > self.room:
            raise self._error()
        self.done += group


@pytest.mark.parametrize(
    ("room", "groups", "tried"),
    [
        (8, in_order(20, 8), [8, 8, 4]),
        (3, [[5, 3, 8, 1, 9, 2, 7]], [7, 3, 3, 1]),
        # Each limit is tried once: 8, 4 and 2 are too many.
        (1, [list(range(8))], [8, 4, 2, *[1] * 8]),
        # Later batches know the limit.
        (2, in_order(16, 8), [8, 4, *[2] * 8]),
        (1, in_order(0, 8), []),
        (1, by_length([], 8), []),
    ],
    ids=["fits", "halved", "halved again", "later batches", "nothing", "no lengths"],
)
def test_a_batch_that_does_not_fit_is_halved_and_keeps_its_order(
    room: int, groups: Iterable[list[int]], tried: list[int]
) -> None:
    groups, device = list(groups), Device(room)
    compute(groups, device.work, model="m")
    assert device.done == list(chain.from_iterable(groups))
    assert [len(group) for group in device.tried] == tried


def test_the_next_call_tries_the_whole_batch_again() -> None:
    device = Device(room=2)
    compute(in_order(4, 4), device.work, model="m")
    device.room = 4
    compute(in_order(4, 4), device.work, model="m")
    assert [len(group) for group in device.tried] == [4, 2, 2, 4]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nsee the documentation"),
        RuntimeError("CUDA failed with error out of memory"),
    ],
)
def test_one_item_that_does_not_fit_is_an_error_of_its_own(error: Exception) -> None:
    device = Device(room=0, error=lambda: error)
    with pytest.raises(DeviceOutOfMemory) as told:
        compute([[0, 1, 2, 3]], device.work, model="bge-m3")
    assert [len(group) for group in device.tried] == [4, 2, 1]
    assert "bge-m3" in str(told.value) and str(error).splitlines()[0] in str(told.value)
    assert "\n" not in str(told.value)
    assert isinstance(told.value, ModelFailure) and told.value.retryable


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("out of memory"), KeyboardInterrupt()]
)
def test_other_errors_pass_at_once(error: BaseException) -> None:
    tried = []

    def work(group: list[int]) -> None:
        tried.append(group)
        raise error

    with pytest.raises(type(error)) as told:
        compute([[0, 1, 2, 3]], work, model="m")
    assert told.value is error
    assert tried == [[0, 1, 2, 3]]


def test_a_failed_batch_is_let_go_of_before_its_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or its tensors would take the room its halves need. Without the garbage collector: there must be no cycle."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    monkeypatch.setattr(batching, "free_cache", lambda: alive.append(sum(ref() is not None for ref in held)))

    def work(group: list[int]) -> None:
        inputs = torch.zeros(len(group), 1000)
        held.append(weakref.ref(inputs))
        if len(group) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    gc.collect()
    gc.disable()
    try:
        compute([[0, 1, 2, 3]], work, model="m")
    finally:
        gc.enable()
    assert (len(held), alive) == (6, [0, 0])


# --- which items go together


@given(st.lists(st.integers(0, 500), max_size=60), st.integers(1, 16), st.none() | st.integers(1, 2000))
def test_every_item_is_in_one_group_of_its_length(lengths: list[int], batch: int, padded: int | None) -> None:
    groups = list(by_length(lengths, batch, padded=padded))
    assert sorted(chain.from_iterable(groups)) == list(range(len(lengths)))
    for group in groups:
        longest, shortest = max(lengths[index] for index in group), min(lengths[index] for index in group)
        assert 1 <= len(group) <= batch
        assert longest <= shortest * 1.25 + 8
        assert padded is None or len(group) == 1 or len(group) * longest <= padded


def test_short_items_come_first() -> None:
    assert list(by_length([100, 5, 101, 6], 2)) == [[1, 3], [0, 2]]


@given(st.integers(0, 100), st.integers(1, 16))
def test_items_of_one_size_keep_their_order(count: int, batch: int) -> None:
    groups = list(in_order(count, batch))
    assert list(chain.from_iterable(groups)) == list(range(count))
    assert all(len(group) == batch for group in groups[:-1])
