"""Names on the broker: queues, task names, where each task is sent, how long it may take.

Everything is published through the default exchange by queue name, so that losing Redis's data loses no binding.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from . import graph
from .plugins import Family

#: The queue of short requests of an API: accept a video, status, search.
REQUESTS = "search"
#: Seconds after which a request that no worker took is discarded by the broker's consumers.
ONLINE_LIMIT_S = 60
REQUEST_LIMIT_S = 120


class _Families(NamedTuple):
    """What depends on the families of installed plug-ins: attributes of this module, computed when one is first used."""

    #: Every kind of node.
    NODES: dict[str, Family]
    FAMILIES: tuple[str, ...]
    #: Families that own a model, and so a queue and a readiness of their own.
    MODEL_FAMILIES: tuple[str, ...]
    QUEUES: tuple[str, ...]
    #: Queues whose messages are wake-up messages for jobs in the ledger.
    JOB_QUEUES: tuple[str, ...]


@cache
def _families() -> _Families:
    families = (
        Family("media", ("media",)),
        Family("asr", ("asr.online", "asr"), has_model=True),
        Family("text", ("text.online", "text"), has_model=True),
        Family("vision", ("vision.online", "vision"), has_model=True),
        Family("face", ("face.online", "face"), has_model=True),
        Family("ocr", ("ocr",), has_model=True),
        *(family for plugin in graph.PLUGINS.plugins for family in plugin.families),
        Family("housekeeping", (graph.HOUSEKEEPING,)),
        Family("search", (REQUESTS,)),
    )
    return _Families(
        NODES={family.name: family for family in families},
        FAMILIES=tuple(family.name for family in families),
        MODEL_FAMILIES=tuple(family.name for family in families if family.has_model),
        QUEUES=tuple(queue for family in families for queue in family.queues),
        JOB_QUEUES=tuple(dict.fromkeys(stage.queue for stage in graph.STAGES.values())),
    )


if TYPE_CHECKING:
    NODES, FAMILIES, MODEL_FAMILIES, QUEUES, JOB_QUEUES = _families()
else:

    def __getattr__(name: str) -> Any:
        if name in _Families._fields:
            return getattr(_families(), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Requests, callable by a bare ``send_task(name, kwargs=..., queue=...)``.
VIDEO_PROCESS = "tasks.video.process"
VIDEO_STATUS = "tasks.video.status"
VIDEO_LIST = "tasks.video.list"
VIDEO_FAILURES = "tasks.video.failures"
VIDEO_UPLOAD = "tasks.video.upload"
VIDEO_SCENES = "tasks.video.scenes"
VIDEO_SUBTITLES = "tasks.video.subtitles"
VIDEO_CANCEL = "tasks.video.cancel"
VIDEO_RETRY = "tasks.video.retry"
VIDEO_RERUN = "tasks.video.rerun"
VIDEO_DELETE = "tasks.video.delete"
ASR_TRANSCRIBE = "tasks.asr.transcribe"
TEXT_EMBED = "tasks.text.embed"
TEXT_RERANK = "tasks.text.rerank"
VISION_EMBED_TEXTS = "tasks.vision.embed_texts"
VISION_EMBED_IMAGES = "tasks.vision.embed_images"
FACE_DETECT = "tasks.face.detect"
PEOPLE_CREATE = "tasks.people.create"
PEOPLE_LIST = "tasks.people.list"
PEOPLE_GET = "tasks.people.get"
PEOPLE_RENAME = "tasks.people.rename"
PEOPLE_DELETE = "tasks.people.delete"
PEOPLE_ADD_PHOTO = "tasks.people.add_photo"
PEOPLE_PHOTOS = "tasks.people.photos"
PEOPLE_REMOVE_PHOTO = "tasks.people.remove_photo"
PEOPLE_ENROLL = "tasks.people.enroll"
PEOPLE_CANCEL = "tasks.people.cancel"
PEOPLE_FACES = "tasks.people.faces"
PEOPLE_JUDGE = "tasks.people.judge"
PEOPLE_MERGE = "tasks.people.merge"
PEOPLE_SPLIT = "tasks.people.split"
PEOPLE_EVENTS = "tasks.people.events"
PEOPLE_UNDO = "tasks.people.undo"
MODELS_STATE = "tasks.models.state"
MODELS_SWITCH = "tasks.models.switch"
MODELS_SAMPLES = "tasks.models.samples"
MODELS_RETRY = "tasks.models.retry"
MODELS_ACTIVATE = "tasks.models.activate"
MODELS_ROLLBACK = "tasks.models.rollback"
MODELS_DISCARD = "tasks.models.discard"
SEARCH_SCENES = "tasks.search.scenes"
#: The fleet's own: a search that waited goes on.
SEARCH_GATHER = "tasks.search.gather"
SEARCH_FINISH = "tasks.search.finish"

TASK_QUEUE: dict[str, str] = {
    VIDEO_PROCESS: REQUESTS,
    VIDEO_STATUS: REQUESTS,
    VIDEO_LIST: REQUESTS,
    VIDEO_FAILURES: REQUESTS,
    VIDEO_UPLOAD: REQUESTS,
    VIDEO_SCENES: REQUESTS,
    VIDEO_SUBTITLES: REQUESTS,
    VIDEO_CANCEL: REQUESTS,
    VIDEO_RETRY: REQUESTS,
    VIDEO_RERUN: REQUESTS,
    VIDEO_DELETE: REQUESTS,
    PEOPLE_CREATE: REQUESTS,
    PEOPLE_LIST: REQUESTS,
    PEOPLE_GET: REQUESTS,
    PEOPLE_RENAME: REQUESTS,
    PEOPLE_DELETE: REQUESTS,
    PEOPLE_ADD_PHOTO: REQUESTS,
    PEOPLE_PHOTOS: REQUESTS,
    PEOPLE_REMOVE_PHOTO: REQUESTS,
    PEOPLE_ENROLL: REQUESTS,
    PEOPLE_CANCEL: REQUESTS,
    PEOPLE_FACES: REQUESTS,
    PEOPLE_JUDGE: REQUESTS,
    PEOPLE_MERGE: REQUESTS,
    PEOPLE_SPLIT: REQUESTS,
    PEOPLE_EVENTS: REQUESTS,
    PEOPLE_UNDO: REQUESTS,
    MODELS_STATE: REQUESTS,
    MODELS_SWITCH: REQUESTS,
    MODELS_SAMPLES: REQUESTS,
    MODELS_RETRY: REQUESTS,
    MODELS_ACTIVATE: REQUESTS,
    MODELS_ROLLBACK: REQUESTS,
    MODELS_DISCARD: REQUESTS,
    SEARCH_SCENES: REQUESTS,
    SEARCH_GATHER: REQUESTS,
    SEARCH_FINISH: REQUESTS,
    ASR_TRANSCRIBE: "asr.online",
    TEXT_EMBED: "text.online",
    TEXT_RERANK: "text.online",
    VISION_EMBED_TEXTS: "vision.online",
    VISION_EMBED_IMAGES: "vision.online",
    FACE_DETECT: "face.online",
}


def wake_up_task(queue: str) -> str:
    """Name of the task that works on a queue, e.g. ``tasks.asr.work``."""
    return f"tasks.{queue}.work"


def queue_limit_s(queue: str) -> int:
    """Longest time limit of a stage of this queue, seconds; Celery's own limit stands a minute above it."""
    return max(stage.time_limit_s for stage in graph.STAGES.values() if stage.queue == queue)


def gate_queue(node: str) -> str:
    """The private queue a node consumes while its model loads: it never gets a message."""
    return f"gate.{node}"
