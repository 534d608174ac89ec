"""sweep: after a run, remove its temporary objects, everything nothing points at, and the outputs of runs that it replaced."""

from __future__ import annotations

from collections.abc import Mapping

from db.engine import reading
from db.ledger.attempts import leases_held, live_jobs
from db.publication import drop_other_transcripts, drop_unpublished, highest_idx, index_words
from db.scenes import referenced_keys
from db.tables import Run
from shared import graph
from shared.storage import Bucket, attempt_prefix
from worker.stages.context import Deferred, Outcome, StageContext

#: How long to wait for attempts that have lost their job to let go, seconds.
_PATIENCE_S = 2.0
#: Scenes whose rows are deleted in one transaction.
_ROWS_OF = 1_000
PLACES: tuple[tuple[Bucket, str], ...] = (
    ("tmp", "tmp"),
    ("sidecars", "keyframes"),
    ("sidecars", "sidecars"),
    ("sidecars", "renditions"),
)


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    # Listed before the ledger is read: what a later run stores meanwhile is not in the list, so it can't be taken
    # for a leftover of this one.
    found: list[tuple[Bucket, str]] = []
    for bucket, role in PLACES:
        for stored in context.storage.list(bucket, f"{role}/{claimed.user_id}/{context.video_name}/"):
            found.append((bucket, stored.key))
            context.report(0.2)
    with reading() as session:
        video, _ = context.video_and_run(session)
        if leases_held(session, claimed.video_id, but=claimed.job_id, late=False):
            raise Deferred(_PATIENCE_S)
        published = session.get(Run, (claimed.video_id, video.published_run or 0))
        # Without a published run the next one may still build on what this one made.
        stage_runs = None if published is None else published.stage_runs
        kept = referenced_keys(session, claimed.video_id, None if stage_runs is None else stage_runs["split"])
        # Late stages may be at work.
        own = tuple(
            attempt_prefix("renditions", claimed.user_id, context.video_name, str(job_id), 0).removesuffix(
                "0/"
            )
            for job_id in live_jobs(session, claimed.video_id, graph.LATE)
        )
    leftover = [(bucket, key) for bucket, key in found if key not in kept and not key.startswith(own)]
    for done, (bucket, key) in enumerate(leftover):
        context.storage.delete(bucket, key)
        context.report(0.2 + 0.7 * done / len(leftover))

    if stage_runs is not None:
        _drop_rows(context, stage_runs)
    return Outcome(result={"removed": len(leftover)})


def _drop_rows(context: StageContext, stage_runs: Mapping[str, int]) -> None:
    """Delete what the published run has replaced, in short transactions; before, index the words of many scenes."""
    video_id = context.claimed.video_id
    with reading() as session:
        last = highest_idx(session, video_id)
    if last >= _ROWS_OF:
        context.write(lambda session, _: index_words(session))
    for first in range(0, last + 1, _ROWS_OF):
        some = (first, first + _ROWS_OF - 1)
        context.write(lambda session, _: drop_unpublished(session, video_id, stage_runs, *some))  # noqa: B023
        context.report(0.9)
    if graph.ASR.name in stage_runs:
        asr_run = stage_runs[graph.ASR.name]
        context.write(lambda session, _: drop_other_transcripts(session, video_id, asr_run))
