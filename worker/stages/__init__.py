"""What each stage does with a claimed job. A stage's module, and so its engine, is imported when it first runs."""

from __future__ import annotations

from importlib import import_module

from db.ledger.claims import Claim
from shared import graph
from shared.errors import Conflict, ModelUnavailable
from shared.logs import get_logger
from shared.storage import Bucket, attempt_prefix
from worker import peers
from worker.stages.context import Deferred, Outcome, StageContext

log = get_logger(__name__)

#: First pause of a job whose model is missing on this node, seconds: another node may take it then.
_OTHERS_S = 2.0


def run(context: StageContext) -> Outcome:
    """Do the job's work. Writes objects under the attempt's own prefixes and nothing to the database.

    Raises:
        ScenefleetError: what went wrong; the class says whether to try again.
        Deferred: it has to wait, or this node lacks a model that another node has.
    """
    name = context.claimed.stage
    handler = graph.find_stage(name).handler
    if not handler:
        raise Conflict(
            f"stage {name!r} is unknown to this node: install the package that brings it, on every node"
        )
    try:
        outcome: Outcome = import_module(handler).run(context)
    except ModelUnavailable as error:
        if not error.model or not peers.have(error.model, context.runtime):
            raise
        log.warning("job left to other nodes: a model is missing here", model=error.model, error=error)
        raise Deferred(_OTHERS_S) from error
    return outcome


def attempt_prefixes(claimed: Claim, video_name: str) -> list[tuple[Bucket, str]]:
    """Where only this attempt writes: (bucket, prefix). ``video_name``: the id by which its user knows the video."""
    ids = (claimed.user_id, video_name, str(claimed.job_id), claimed.attempt)
    return [
        ("tmp", attempt_prefix("tmp", *ids)),
        ("sidecars", attempt_prefix("keyframes", *ids)),
        ("sidecars", attempt_prefix("renditions", *ids)),
    ]
