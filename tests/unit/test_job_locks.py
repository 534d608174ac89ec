"""One job alone on its node: locks between processes, which a killed one gives back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.job_locks import JobLocks


@contextmanager
def another(act: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """A forked process that has done ``act`` and then waits; yields what kills it."""
    ready, wait = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            act()
            os.write(ready[1], b"1")
            os.read(wait[0], 1)
        finally:
            os._exit(0)
    os.read(ready[0], 1)
    done: list[int] = []

    def kill() -> None:
        if not done:
            os.kill(pid, signal.SIGKILL)
            done.append(os.waitpid(pid, 0)[0])

    try:
        yield kill
    finally:
        kill()
        for end in (*ready, *wait):
            os.close(end)


def test_a_job_is_alone_when_the_others_have_ended_and_none_begins_meanwhile() -> None:
    locks = JobLocks()
    with another(locks.begin) as kill:
        assert locks.begin() and locks.close_gate()
        assert not locks.is_alone()
        kill()
        assert locks.is_alone()

    begun = os.pipe()
    with another(lambda: os.write(begun[1], b"1" if locks.begin() else b"0")):
        assert os.read(begun[0], 1) == b"0", "a job runs alone"
    locks.end()
    with another(lambda: os.write(begun[1], b"1" if locks.begin() else b"0")):
        assert os.read(begun[0], 1) == b"1"


def test_one_job_at_a_time_closes_the_gate_and_a_killed_one_opens_it() -> None:
    locks = JobLocks()
    assert locks.begin()
    with another(lambda: locks.begin() and locks.close_gate()) as kill:
        assert not locks.close_gate()
        kill()
        assert locks.close_gate() and locks.is_alone()
