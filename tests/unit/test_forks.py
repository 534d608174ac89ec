"""A replacement child is forked beside threads, and while Celery reconnects."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from worker.broker.celery_patches import allow_early_exits

WAIT = """
for _ in range(30):
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended:
        os._exit(status != 0)
    time.sleep(0.1)
os.kill(pid, 9)
print("the child hangs", file=sys.stderr, flush=True)
os._exit(1)
"""

LOGS = (
    """
import logging, os, sys, threading, time
from worker.forks import forks

class Slow:
    def write(self, text):
        writing.set()
        with lock:
            time.sleep(0.3)
    def flush(self): pass

# As the lock inside a stream: nobody makes it new in the child.
lock, writing = threading.Lock(), threading.Event()
logging.basicConfig(stream=Slow(), level="INFO")
forks.install()
threading.Thread(target=logging.info, args=("a line",)).start()
writing.wait()
pid = os.fork()
logging.info("a line of both processes")
if not pid:
    os._exit(0)
"""
    + WAIT
)

COMPUTES = (
    """
import os, sys, threading, time
from worker import runtime

def compute(settings, catalog):
    computing.set()
    time.sleep(5)

computing = threading.Event()
runtime.make_policy = compute
threading.Thread(target=lambda: runtime.get_runtime().policy, daemon=True).start()
computing.wait()
pid = os.fork()
if not pid:
    runtime.make_policy = lambda settings, catalog: "its own"
    runtime.renew_runtime()
    os._exit(runtime.get_runtime().policy != "its own")
"""
    + WAIT
)


@pytest.mark.parametrize("program", [LOGS, COMPUTES], ids=["writes to the log", "reads the runtime"])
def test_a_child_forked_while_a_thread_does_this_can_do_it_too(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_node_reconnects_while_a_child_ends() -> None:
    watched: list[object] = []

    class Pool:
        def _track_child_process(self, process: object, hub: object) -> None:
            watched.append(process)

    children = Pool()
    new, living, ended = (
        SimpleNamespace(),
        SimpleNamespace(_sentinel_poll=7),
        SimpleNamespace(_sentinel_poll=None),
    )
    for _ in range(2):
        # Celery starts the step again after each lost connection.
        allow_early_exits(SimpleNamespace(_pool=children))
    for process in (new, living, ended):
        children._track_child_process(process, None)
    assert watched == [new, living]
