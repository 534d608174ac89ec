"""Which stage follows which, and what each is: pure data, on one screen.

    split -+-> asr (windows) -> text (batches of scenes) -+-> sidecar -> published
           +-> vision (batches of keyframes) -------------+
           +-> face (batches of keyframes) ---------------+
           +-> ocr (batches of keyframes) ----------------+
           +-> stages of plug-ins ------------------------+

``audio`` stands between split and what needs sound only in a run that repeats that without split: split's own pass makes
the audio otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import plugins
from .stage import Stage

#: The queue of jobs that no next result waits for: it has processes of its own, so that it neither holds up the
#: pipeline nor waits behind it.
HOUSEKEEPING = "housekeeping"

SPLIT = Stage(
    name="split", queue="media", handler="worker.stages.split", essential=True, time_limit_s=6 * 3600
)
AUDIO = Stage(
    name="audio", queue="media", handler="worker.stages.audio", after=("split",), time_limit_s=3600,
    stands_in_for="split",
)  # fmt: skip
ASR = Stage(
    name="asr", queue="asr", handler="worker.stages.asr", after=("split", "audio"), time_limit_s=1800,
    parts="windows",
)  # fmt: skip
TEXT = Stage(
    name="text", queue="text", handler="worker.stages.text", after=("asr",), time_limit_s=600,
    parts="scenes", batch=64, flags=("feature_semantic_search",), tables=("lexical_weights",),
    retrievers=("text", "lexical"),
)  # fmt: skip
VISION = Stage(
    name="vision", queue="vision", handler="worker.stages.vision", after=("split",), time_limit_s=600,
    parts="keyframes", batch=32, flags=("feature_vision",), tables=("scene_tags",), retrievers=("vision",),
)  # fmt: skip
FACE = Stage(
    name="face", queue="face", handler="worker.stages.face", after=("split",), time_limit_s=600,
    parts="keyframes", batch=8, flags=("feature_face", "feature_face_detection"), tables=("faces", "face_tracks"),
)  # fmt: skip
OCR = Stage(
    name="ocr", queue="ocr", handler="worker.stages.ocr", after=("split",), time_limit_s=600,
    parts="keyframes", batch=8, flags=("feature_ocr",), tables=("screen_texts",), retrievers=("screen",),
)  # fmt: skip
_BUILT_IN: tuple[Stage, ...] = (SPLIT, AUDIO, ASR, TEXT, VISION, FACE, OCR)

#: Jobs of a video outside the pipeline: remove what a run left, remove a deleted video.
SWEEP = Stage(name="sweep", queue=HOUSEKEEPING, handler="worker.stages.sweep", time_limit_s=1800)
ERASE_VIDEO = Stage(
    name="erase_video", queue=HOUSEKEEPING, handler="worker.stages.erase_video", time_limit_s=3600,
    may_be_given_up=False, outlives_subject=True,
)  # fmt: skip

#: Jobs about people: look at a person's photos, compare a video's faces with the people again, erase a person. A change
#: of people is written into a video's sidecars by a job of the video.
ENROLL = Stage(name="enroll", queue="face", handler="worker.stages.enroll", time_limit_s=600, batch=8)
MATCH = Stage(
    name="match", queue=HOUSEKEEPING, handler="worker.stages.match", after=("enroll",), time_limit_s=600
)
ERASE_PERSON = Stage(
    name="erase_person", queue=HOUSEKEEPING, handler="worker.stages.erase_person", time_limit_s=3600,
    may_be_given_up=False, outlives_subject=True,
)  # fmt: skip
#: Give tracks to another person, a batch at a time: a merge, or what undoes a merge or a split. An erasure waits for it.
MOVE = Stage(
    name="move", queue=HOUSEKEEPING, handler="worker.stages.move", time_limit_s=3600,
    may_be_given_up=False, outlives_run=True, outlives_subject=True,
)  # fmt: skip
#: Remove photos once more when no URL is left by which they could have been stored again.
LATE_PHOTOS = Stage(
    name="late_photos", queue=HOUSEKEEPING, handler="worker.stages.late_photos", time_limit_s=3600,
    may_be_given_up=False, outlives_run=True,
)  # fmt: skip
REWRITE_SIDECARS = Stage(
    name="rewrite_sidecars", queue=HOUSEKEEPING, handler="worker.stages.rewrite_sidecars", time_limit_s=1800
)

#: Jobs of a switch of models: give published scenes vectors of the new model, drop those of the other. The parts are
#: small: a search waits for the one in work.
TEXT_REEMBED = Stage(
    name="text_reembed", queue="text", handler="worker.stages.reembed", time_limit_s=600, batch=32
)
VISION_REEMBED = Stage(
    name="vision_reembed", queue="vision", handler="worker.stages.reembed", time_limit_s=600, batch=8
)
DISCARD = Stage(name="discard", queue=HOUSEKEEPING, handler="worker.stages.discard", time_limit_s=3600)

_OUTSIDE = (
    SWEEP, ERASE_VIDEO, ENROLL, MATCH, ERASE_PERSON, MOVE, LATE_PHOTOS, REWRITE_SIDECARS, TEXT_REEMBED, VISION_REEMBED,
    DISCARD,
)  # fmt: skip

#: What other packages add.
PLUGINS = plugins.read(
    plugins.find(),
    pipeline=_BUILT_IN,
    taken={
        "sidecar",
        "search",
        HOUSEKEEPING,
        *(stage.queue for stage in _BUILT_IN),
        *(stage.name for stage in _OUTSIDE),
    },
)
_BEFORE_SIDECAR = (*_BUILT_IN, *(stage for plugin in PLUGINS.plugins for stage in plugin.stages))
SIDECAR = Stage(
    name="sidecar", queue="media", handler="worker.stages.sidecar", essential=True, time_limit_s=3600,
    after=tuple(stage.name for stage in _BEFORE_SIDECAR if not stage.stands_in_for),
)  # fmt: skip

#: The pipeline of a video, in an order in which every stage follows what it waits for.
PIPELINE: tuple[Stage, ...] = (*_BEFORE_SIDECAR, SIDECAR)
STAGES: dict[str, Stage] = {stage.name: stage for stage in (*PIPELINE, *_OUTSIDE)}
PIPELINE_NAMES: tuple[str, ...] = tuple(stage.name for stage in PIPELINE)
#: What a run from the start makes, and what a caller may name.
FULL_RUN: tuple[str, ...] = tuple(stage.name for stage in PIPELINE if not stage.stands_in_for)


def find_stage(name: str) -> Stage:
    """The stage of a job. One whose package has been uninstalled has no handler: its jobs fail at once."""
    return STAGES.get(name) or Stage(name=name, queue="", handler="", time_limit_s=60)


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


#: Stages whose jobs go on when their subject has begun another run.
LASTING: tuple[str, ...] = tuple(stage.name for stage in STAGES.values() if stage.outlives_run)
#: No attempt of any stage outlives this, seconds.
LONGEST_S: int = max(stage.time_limit_s for stage in STAGES.values())


def with_downstream(names: Iterable[str]) -> set[str]:
    """The named stages and every stage that depends on one of them (one that stands in for another only if named).

    Raises:
        KeyError: a name is not a stage of the pipeline.
    """
    wanted = set()
    for name in names:
        if name not in PIPELINE_NAMES:
            raise KeyError(name)
        wanted.add(name)
    for stage in PIPELINE:
        if not stage.stands_in_for and wanted.intersection(stage.after):
            wanted.add(stage.name)
    return wanted


def with_stand_ins(names: Iterable[str]) -> set[str]:
    """The stages of a run, with those that make again for them what a stage that is not repeated had left."""
    wanted = set(names)
    return wanted | {
        stage.name
        for stage in PIPELINE
        if stage.stands_in_for
        and stage.stands_in_for not in wanted
        and any(stage.name in STAGES[name].after for name in wanted)
    }
