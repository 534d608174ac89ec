"""What each stage does with a claimed job. A stage's module, and so its engine, is imported when it first runs."""

from __future__ import annotations

from importlib import import_module

from db.ledger.claims import Claim
from shared.storage import Bucket, attempt_prefix
from worker.stages.context import Outcome, StageContext

_MODULES = {
    "split": "worker.stages.split",
    "audio": "worker.stages.audio",
    "asr": "worker.stages.asr",
    "text": "worker.stages.text",
    "vision": "worker.stages.vision",
    "face": "worker.stages.face",
    "ocr": "worker.stages.ocr",
    "sidecar": "worker.stages.sidecar",
    "enroll": "worker.stages.enroll",
    "match": "worker.stages.match",
    "erase_person": "worker.stages.erase_person",
    "move": "worker.stages.move",
    "late_photos": "worker.stages.late_photos",
    "rewrite_sidecars": "worker.stages.rewrite_sidecars",
    "text_reembed": "worker.stages.reembed",
    "vision_reembed": "worker.stages.reembed",
    "discard": "worker.stages.discard",
    "sweep": "worker.stages.sweep",
    "erase_video": "worker.stages.erase_video",
}


def run(context: StageContext) -> Outcome:
    """Do the job's work. Writes objects under the attempt's own prefixes and nothing to the database.

    Raises:
        ScenefleetError: what went wrong; the class says whether to try again.
    """
    stage = import_module(_MODULES[context.claimed.stage])
    outcome: Outcome = stage.run(context)
    return outcome


def attempt_prefixes(claimed: Claim, video_name: str) -> list[tuple[Bucket, str]]:
    """Where only this attempt writes: (bucket, prefix). ``video_name``: the id by which its user knows the video."""
    ids = (claimed.user_id, video_name, str(claimed.job_id), claimed.attempt)
    return [("tmp", attempt_prefix("tmp", *ids)), ("sidecars", attempt_prefix("keyframes", *ids))]
