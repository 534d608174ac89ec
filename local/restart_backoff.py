"""How long a node that keeps ending waits before its next start.

supervisord starts a program again at once when it ended after its first second, so a node that dies two seconds into
its start would keep a processor busy for ever. Its own start waits instead, longer each time.
"""

from __future__ import annotations

import json
from pathlib import Path

#: Starts longer ago than this don't count.
WINDOW_S = 180.0
#: This many starts within the window cause no wait: a node that is killed now and then restarts at once.
FREE_STARTS = 3
LONGEST_S = 60.0


def pause_s(record: Path, now_s: float) -> float:
    """Note a start at ``now_s`` (seconds since 1970) in ``record``; returns how long to wait before it, seconds."""
    try:
        starts = [float(start) for start in json.loads(record.read_text())]
    except (FileNotFoundError, ValueError, TypeError):
        # No record, or one that a crash cut short: begin a new one.
        starts = []
    recent = [start for start in starts if 0 <= now_s - start < WINDOW_S]
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps([*recent, now_s]))
    extra = len(recent) + 1 - FREE_STARTS
    return 0.0 if extra <= 0 else min(2.0**extra, LONGEST_S)
