"""The ledger's frequent statements: claims, every look of the reconciler, a video's status, the next unknown number."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session

from db import videos
from db.ledger import attempts, claims, retention, subjects, usage
from db.people import revisions, unknowns
from db.webhooks import deliveries
from tests.support.large_ledger import CROWDED

Statement = Callable[[Session], object]


def statements() -> dict[str, Statement]:
    """Name -> a call of it, over a ledger as ``tests.support.large_ledger`` makes it."""
    return {
        "claim (asr)": lambda session: claims.claim(session, "asr", "bench:1:0:2", 60.0),
        "claim (housekeeping)": lambda session: claims.claim(session, "housekeeping", "bench:1:0:2", 60.0),
        "held jobs": attempts.held_jobs,
        **{f"stuck {kind}": found.find_stuck for kind, found in subjects.KINDS.items()},
        "stale sidecars": revisions.stale_videos,
        "unmarked accounts": usage.find_unmarked,
        "any job due": claims.any_due,
        "claimable jobs": claims.claimable,
        "half-lives and idle accounts": usage.tend,
        "old jobs": retention.remove_ended,
        "replaced runs": retention.replaced_runs,
        "old deliveries": deliveries.purge,
        "status of a video": lambda session: videos.status(session, "v1", CROWDED),
        "next unknown number": lambda session: unknowns.make_unknown(session, CROWDED),
    }
