"""One reconciler as a process of its own: waits for the others, then does every step many times over.

``python -m tests.faults.reconcilers FOLDER COUNT``: each process leaves a file in FOLDER and begins when there are
COUNT of them.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from worker import reconcile

_ROUNDS = 10


def main(folder: Path, count: int) -> None:
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < count:
        if time.monotonic() > deadline:
            raise SystemExit("the other reconcilers did not come")
        time.sleep(0.001)
    for _ in range(_ROUNDS):
        # Without the lock that ``fleet`` takes: it is there to save work, not to be right.
        reconcile.expired_leases()
        reconcile.stuck("video")
        reconcile.fleet()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
