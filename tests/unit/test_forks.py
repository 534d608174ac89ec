"""A replacement child is forked beside threads, and while Celery reconnects."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

from worker.celery_patches import allow_early_exits

LOGS = """
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
for _ in range(50):
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended:
        sys.exit(status)
    time.sleep(0.1)
os.kill(pid, 9)
sys.exit("the child hangs at its first line")
"""


def test_a_child_forked_while_a_thread_logs_can_log() -> None:
    done = subprocess.run([sys.executable, "-c", LOGS], capture_output=True, text=True, timeout=60)
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
