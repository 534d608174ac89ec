"""Which stage follows which: pure data, on one screen.

    split -+-> asr (windows) -> text (batches of scenes) -+-> sidecar -> published
           +-> vision (batches of keyframes) -------------+
           +-> face (batches of keyframes) ---------------+
           +-> ocr (batches of keyframes) ----------------+

``audio`` stands between split and asr only in a run that repeats asr without split: split's own pass makes the
audio otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    #: The queue whose workers run it.
    queue: str
    #: Stages that must have ended before it starts.
    after: tuple[str, ...] = ()
    #: Without it there is nothing to publish: its failure fails the run.
    essential: bool = False
    #: A part that runs longer than this is stopped, seconds.
    time_limit_s: int
    #: How many items (scenes, keyframes) make one part; 0: the stage decides.
    batch: int = 0


SPLIT = Stage(name="split", queue="media", essential=True, time_limit_s=6 * 3600)
AUDIO = Stage(name="audio", queue="media", after=("split",), time_limit_s=3600)
ASR = Stage(name="asr", queue="asr", after=("split", "audio"), time_limit_s=1800)
TEXT = Stage(name="text", queue="text", after=("asr",), time_limit_s=600, batch=64)
VISION = Stage(name="vision", queue="vision", after=("split",), time_limit_s=600, batch=32)
FACE = Stage(name="face", queue="face", after=("split",), time_limit_s=600, batch=8)
OCR = Stage(name="ocr", queue="ocr", after=("split",), time_limit_s=600, batch=8)
SIDECAR = Stage(
    name="sidecar",
    queue="media",
    after=("split", "asr", "text", "vision", "face", "ocr"),
    essential=True,
    time_limit_s=3600,
)

#: The pipeline of a video, in an order in which every stage follows what it waits for.
PIPELINE: tuple[Stage, ...] = (SPLIT, AUDIO, ASR, TEXT, VISION, FACE, OCR, SIDECAR)

#: The queue of what nobody's next result waits for: it has processes of its own, so that it neither holds up the
#: pipeline nor waits behind it.
HOUSEKEEPING = "housekeeping"

#: Jobs of a video outside the pipeline: remove what a run left, remove a deleted video.
SWEEP = Stage(name="sweep", queue=HOUSEKEEPING, time_limit_s=1800)
ERASE_VIDEO = Stage(name="erase_video", queue=HOUSEKEEPING, time_limit_s=3600)

#: Jobs about people: look at a person's photos, compare a video's faces with the people again, erase a person. A change
#: of people is written into a video's sidecars by a job of the video.
ENROLL = Stage(name="enroll", queue="face", time_limit_s=600, batch=8)
MATCH = Stage(name="match", queue=HOUSEKEEPING, after=("enroll",), time_limit_s=600)
ERASE_PERSON = Stage(name="erase_person", queue=HOUSEKEEPING, time_limit_s=3600)
#: Give tracks to another person, a batch at a time: a merge, or what undoes a merge or a split.
MOVE = Stage(name="move", queue=HOUSEKEEPING, time_limit_s=3600)
#: Remove photos once more when no URL is left by which they could have been stored again.
LATE_PHOTOS = Stage(name="late_photos", queue=HOUSEKEEPING, time_limit_s=3600)
REWRITE_SIDECARS = Stage(name="rewrite_sidecars", queue=HOUSEKEEPING, time_limit_s=1800)

#: Jobs of a switch of models: give published scenes vectors of the new model, drop those of the other. The parts are
#: small: a search waits for the one in work.
TEXT_REEMBED = Stage(name="text_reembed", queue="text", time_limit_s=600, batch=32)
VISION_REEMBED = Stage(name="vision_reembed", queue="vision", time_limit_s=600, batch=8)
DISCARD = Stage(name="discard", queue=HOUSEKEEPING, time_limit_s=3600)

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        *PIPELINE, SWEEP, ERASE_VIDEO, ENROLL, MATCH, ERASE_PERSON, MOVE, LATE_PHOTOS, REWRITE_SIDECARS, TEXT_REEMBED, VISION_REEMBED, DISCARD,
    )
}  # fmt: skip
PIPELINE_NAMES: tuple[str, ...] = tuple(stage.name for stage in PIPELINE)
#: What a run from the start makes, and what a caller may name.
FULL_RUN: tuple[str, ...] = tuple(name for name in PIPELINE_NAMES if name != AUDIO.name)


def _count_before(stage: Stage) -> int:
    return max((1 + _count_before(STAGES[name]) for name in stage.after if name in PIPELINE_NAMES), default=0)


_DEPTHS: dict[str, int] = {stage.name: _count_before(stage) for stage in PIPELINE}


def depth(name: str) -> int:
    """How many stages lie between a stage and the start of the pipeline; among a user's jobs the deeper one goes first.

    A stage outside the pipeline counts as the last: what a user waits for doesn't stand behind a queue of films.

    Raises:
        KeyError: there is no such stage.
    """
    return _DEPTHS.get(STAGES[name].name, max(_DEPTHS.values()))


#: No attempt of any stage outlives this, seconds.
LONGEST_S: int = max(stage.time_limit_s for stage in STAGES.values())


def with_downstream(names: Iterable[str]) -> set[str]:
    """The named stages and every stage that depends on one of them (``audio`` only if named).

    Raises:
        KeyError: a name is not a stage of the pipeline.
    """
    wanted = set()
    for name in names:
        if name not in PIPELINE_NAMES:
            raise KeyError(name)
        wanted.add(name)
    for stage in PIPELINE:
        if stage.name != "audio" and wanted.intersection(stage.after):
            wanted.add(stage.name)
    return wanted
