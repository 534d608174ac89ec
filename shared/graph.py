"""Which stage follows which, and what each is: the built-in stages, and those of installed plug-ins.

    split -+-> asr (windows) -> text (batches of scenes) -+-> sidecar -> published
           +-> vision (batches of keyframes) -------------+
           +-> face (batches of keyframes) ---------------+
           +-> ocr (batches of keyframes) ----------------+
           +-> stages of plug-ins ------------------------+

``split`` extracts the audio in its decode pass. In a run that repeats a stage which needs the audio, but not ``split``,
``audio`` extracts it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from . import plugins
from .stage import Stage

#: The queue of jobs that no later stage waits for. It has its own processes, so that it neither delays the pipeline nor
#: waits behind it.
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

#: Jobs of a video outside the pipeline: remove what a run left behind, remove a deleted video.
SWEEP = Stage(name="sweep", queue=HOUSEKEEPING, handler="worker.stages.sweep", time_limit_s=1800)
ERASE_VIDEO = Stage(
    name="erase_video", queue=HOUSEKEEPING, handler="worker.stages.erase_video", time_limit_s=3600,
    may_be_given_up=False, outlives_subject=True,
)  # fmt: skip

#: Jobs about people: analyse a person's photos, match a video's faces again, erase a person. A job of the video writes
#: changed people into its sidecars.
ENROLL = Stage(name="enroll", queue="face", handler="worker.stages.enroll", time_limit_s=600, batch=8)
MATCH = Stage(
    name="match", queue=HOUSEKEEPING, handler="worker.stages.match", after=("enroll",), time_limit_s=600
)
ERASE_PERSON = Stage(
    name="erase_person", queue=HOUSEKEEPING, handler="worker.stages.erase_person", time_limit_s=3600,
    may_be_given_up=False, outlives_subject=True,
)  # fmt: skip
#: Gives tracks to another person, batch by batch: for a merge, or to undo a merge or a split. An erasure waits for it.
MOVE = Stage(
    name="move", queue=HOUSEKEEPING, handler="worker.stages.move", time_limit_s=3600,
    may_be_given_up=False, outlives_run=True, outlives_subject=True,
)  # fmt: skip
#: Removes photos once more after the last URL by which they could be uploaded again has expired.
LATE_PHOTOS = Stage(
    name="late_photos", queue=HOUSEKEEPING, handler="worker.stages.late_photos", time_limit_s=3600,
    may_be_given_up=False, outlives_run=True,
)  # fmt: skip
REWRITE_SIDECARS = Stage(
    name="rewrite_sidecars", queue=HOUSEKEEPING, handler="worker.stages.rewrite_sidecars", time_limit_s=1800
)

#: Jobs of a switch of models: create vectors of the new model for published scenes, delete those of the other. The parts
#: are small because a search waits for the part that is running.
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


class _Graph(NamedTuple):
    """What depends on the installed plug-ins: attributes of this module, computed when one is first used."""

    PLUGINS: plugins.Installed
    SIDECAR: Stage
    #: The pipeline of a video; every stage stands after those that it waits for.
    PIPELINE: tuple[Stage, ...]
    PIPELINE_NAMES: tuple[str, ...]
    #: The stages of a run from the start; a caller may name them.
    FULL_RUN: tuple[str, ...]
    #: All stages, also those outside the pipeline.
    STAGES: dict[str, Stage]
    #: Stages whose jobs continue after their subject has begun another run.
    LASTING: tuple[str, ...]
    #: The longest time limit of any stage, seconds.
    LONGEST_S: int


@cache
def _graph() -> _Graph:
    installed = plugins.read(
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
    before = (*_BUILT_IN, *(stage for plugin in installed.plugins for stage in plugin.stages))
    full_run = tuple(stage.name for stage in before if not stage.stands_in_for)
    sidecar = Stage(
        name="sidecar", queue="media", handler="worker.stages.sidecar", essential=True, time_limit_s=3600, after=full_run
    )  # fmt: skip
    pipeline = (*before, sidecar)
    stages = {stage.name: stage for stage in (*pipeline, *_OUTSIDE)}
    return _Graph(
        PLUGINS=installed,
        SIDECAR=sidecar,
        PIPELINE=pipeline,
        PIPELINE_NAMES=tuple(stage.name for stage in pipeline),
        FULL_RUN=(*full_run, sidecar.name),
        STAGES=stages,
        LASTING=tuple(stage.name for stage in stages.values() if stage.outlives_run),
        LONGEST_S=max(stage.time_limit_s for stage in stages.values()),
    )


if TYPE_CHECKING:
    PLUGINS, SIDECAR, PIPELINE, PIPELINE_NAMES, FULL_RUN, STAGES, LASTING, LONGEST_S = _graph()
else:

    def __getattr__(name: str) -> Any:
        # Not at import: finding the plug-ins takes 20 ms and more, and clients need none of this.
        if name in _Graph._fields:
            return getattr(_graph(), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def find_stage(name: str) -> Stage:
    """The stage of a job. One whose package has been uninstalled has no handler: its jobs fail at once."""
    return _graph().STAGES.get(name) or Stage(name=name, queue="", handler="", time_limit_s=60)


@cache
def depth(name: str) -> int:
    """How many stages precede a stage in the pipeline; among a user's jobs the one with the greatest depth goes first.

    A stage outside the pipeline counts as the last one, so that its jobs don't wait behind a queue of films.

    Raises:
        KeyError: there is no such stage.
    """
    graph = _graph()
    stage = graph.STAGES[name]
    if stage not in graph.PIPELINE:
        stage = graph.SIDECAR
    return max((1 + depth(before) for before in stage.after), default=0)


def with_downstream(names: Iterable[str]) -> set[str]:
    """The named stages and every stage that depends on one of them (one that stands in for another only if named).

    Raises:
        KeyError: a name is not a stage of the pipeline.
    """
    wanted = set(names)
    if unknown := wanted.difference(_graph().PIPELINE_NAMES):
        raise KeyError(*sorted(unknown))
    for stage in _graph().PIPELINE:
        if not stage.stands_in_for and wanted.intersection(stage.after):
            wanted.add(stage.name)
    return wanted


def with_stand_ins(names: Iterable[str]) -> set[str]:
    """The stages of a run, with those that make again for them what a stage that is not repeated had left."""
    wanted = set(names)
    graph = _graph()
    return wanted | {
        stage.name
        for stage in graph.PIPELINE
        if stage.stands_in_for
        and stage.stands_in_for not in wanted
        and any(stage.name in graph.STAGES[name].after for name in wanted)
    }
