"""Nodes that get stuck on purpose: their event loop, or their consumer, while a file exists. The watchdog looks more often."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tests.support.wrapping import wrap_on_import

_VARIABLE = "TEST_STUCK_DIR"
#: Instead of the watchdog's 5 s.
LOOK_S = 1.0


def environment(folder: Path) -> dict[str, str]:
    """For a node; it is stuck while ``folder`` has a file `loop` or `consumer`."""
    wrap_on_import(folder / "python", "worker.boot", __name__, "wrap")
    return {"PYTHONPATH": str(folder / "python"), _VARIABLE: str(folder)}


def wrap(boot: Any) -> None:
    """Called in the node, after the import of ``worker.boot``."""
    from worker import housekeeping
    from worker.broker.celery_patches import Channel
    from worker.telemetry import watchdog

    folder = Path(os.environ[_VARIABLE])
    watchdog.LOOK_S = LOOK_S
    housekeeping._PUBLISH_S = LOOK_S
    look = boot.Gate.look

    def stuck_look(gate: Any, consumer: Any) -> None:
        while (folder / "loop").exists():
            time.sleep(0.1)
        look(gate, consumer)

    poll = Channel._brpop_start

    def stuck_poll(channel: Any, *args: Any, **kwargs: Any) -> None:
        if not (folder / "consumer").exists():
            poll(channel, *args, **kwargs)

    boot.Gate.look = stuck_look
    Channel._brpop_start = stuck_poll
