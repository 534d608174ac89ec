"""Which stage follows which, and what each is: the built-in stages, and those of installed plug-ins.

    split -+-> asr (windows) -> text (batches of scenes) -+-> sidecar -> published
           +-> vision (batches of keyframes) -------------+
           +-> face (batches of keyframes) ---------------+
           +-> ocr (batches of keyframes) ----------------+
           +-> stages of plug-ins ------------------------+
           +-> rendition (begins when the run is published)

``split`` extracts the audio in its decode pass, or in a part of its own beside the spans of a long video. In a run that
repeats a stage which needs the audio, but not ``split``, ``audio`` extracts it again.
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


def _stage(name: str, queue: str, time_limit_s: int, *, handler: str = "", **fields: Any) -> Stage:
    handler = f"worker.stages.{handler or name}"
    return Stage(name=name, queue=queue, handler=handler, time_limit_s=time_limit_s, **fields)


SPLIT = _stage("split", "media", 6 * 3600, essential=True)
AUDIO = _stage("audio", "media", 3600, after=("split",), stands_in_for="split")
ASR = _stage("asr", "asr", 1800, after=("split", "audio"), parts="windows")
TEXT = _stage(
    "text", "text", 600, after=("asr",), parts="scenes", batch=64, flags=("feature_semantic_search",),
    tables=("lexical_weights",), retrievers=("text", "lexical"),
)  # fmt: skip
VISION = _stage(
    "vision", "vision", 600, after=("split",), parts="keyframes", batch=32, flags=("feature_vision",),
    tables=("scene_tags",), retrievers=("vision",),
)  # fmt: skip
FACE = _stage(
    "face", "face", 600, after=("split",), parts="keyframes", batch=8, flags=("feature_face", "feature_face_detection"),
    tables=("faces", "face_tracks"),
)  # fmt: skip
OCR = _stage(
    "ocr", "ocr", 600, after=("split",), parts="keyframes", batch=8, flags=("feature_ocr",),
    tables=("screen_texts",), retrievers=("screen",),
)  # fmt: skip
_BUILT_IN = (SPLIT, AUDIO, ASR, TEXT, VISION, FACE, OCR)
RENDITION = _stage("rendition", "media", 6 * 3600, after=("split",), flags=("feature_rendition",), late=True)
_LATE = (RENDITION,)

#: Jobs of a video outside the pipeline: remove what a run left behind, remove a deleted video.
SWEEP = _stage("sweep", HOUSEKEEPING, 1800)
ERASE_VIDEO = _stage("erase_video", HOUSEKEEPING, 3600, may_be_given_up=False, outlives_subject=True)

#: Jobs about people: analyse a person's photos, match a video's faces again, erase a person. A job of the video writes
#: changed people into its sidecars.
ENROLL = _stage("enroll", "face", 600, batch=8)
MATCH = _stage("match", HOUSEKEEPING, 600, after=("enroll",))
ERASE_PERSON = _stage("erase_person", HOUSEKEEPING, 3600, may_be_given_up=False, outlives_subject=True)
#: Gives tracks to another person, batch by batch: for a merge, or to undo a merge or a split. An erasure waits for it.
MOVE = _stage("move", HOUSEKEEPING, 3600, may_be_given_up=False, outlives_run=True, outlives_subject=True)
#: Removes photos once more after the last URL by which they could be uploaded again has expired.
LATE_PHOTOS = _stage("late_photos", HOUSEKEEPING, 3600, may_be_given_up=False, outlives_run=True)
REWRITE_SIDECARS = _stage("rewrite_sidecars", HOUSEKEEPING, 1800)

#: Jobs of a switch of models: create vectors of the new model for published scenes, delete those of the other. The parts
#: are small because a search waits for the part that is running.
TEXT_REEMBED = _stage("text_reembed", "text", 600, handler="reembed", batch=32)
VISION_REEMBED = _stage("vision_reembed", "vision", 600, handler="reembed", batch=8)
DISCARD = _stage("discard", HOUSEKEEPING, 3600)

#: Builds the vector index of a model.
BUILD_INDEX = _stage("build_index", HOUSEKEEPING, 6 * 3600, may_be_given_up=False)

#: Sends the events that are due of one webhook.
DELIVER = _stage("deliver", HOUSEKEEPING, 600, may_be_given_up=False)

_OUTSIDE = (
    SWEEP, ERASE_VIDEO, ENROLL, MATCH, ERASE_PERSON, MOVE, LATE_PHOTOS, REWRITE_SIDECARS, TEXT_REEMBED, VISION_REEMBED,
    DISCARD, DELIVER, BUILD_INDEX,
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
    #: Stages that begin when their run has ended.
    LATE: tuple[str, ...]
    #: The longest time limit of any stage, seconds.
    LONGEST_S: int


@cache
def _graph() -> _Graph:
    queues, outside = {stage.queue for stage in _BUILT_IN}, {stage.name for stage in _OUTSIDE}
    late = tuple(stage.name for stage in _LATE)
    taken = {"sidecar", "search", HOUSEKEEPING, *late} | queues | outside
    installed = plugins.read(plugins.find(), pipeline=_BUILT_IN, taken=taken)
    before = (*_BUILT_IN, *(stage for plugin in installed.plugins for stage in plugin.stages))
    full_run = tuple(stage.name for stage in before if not stage.stands_in_for)
    sidecar = _stage("sidecar", "media", 3600, essential=True, after=full_run)
    pipeline = (*before, sidecar, *_LATE)
    stages = {stage.name: stage for stage in (*pipeline, *_OUTSIDE)}
    return _Graph(
        PLUGINS=installed,
        SIDECAR=sidecar,
        PIPELINE=pipeline,
        PIPELINE_NAMES=tuple(stage.name for stage in pipeline),
        FULL_RUN=(*full_run, sidecar.name, *late),
        STAGES=stages,
        LASTING=tuple(stage.name for stage in stages.values() if stage.outlives_run),
        LATE=late,
        LONGEST_S=max(stage.time_limit_s for stage in stages.values()),
    )


if TYPE_CHECKING:
    PLUGINS, SIDECAR, PIPELINE, PIPELINE_NAMES, FULL_RUN, STAGES, LASTING, LATE, LONGEST_S = _graph()
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

    A stage outside the pipeline counts as the last one, so that its jobs don't wait behind a queue of films; a late stage
    is behind all others.

    Raises:
        KeyError: there is no such stage.
    """
    graph = _graph()
    stage = graph.STAGES[name]
    if stage.late:
        return -1
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
