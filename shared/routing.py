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
#: The Redis channel on which workers say that something has changed (worker/changes.py).
CHANGES = "scenefleet:changes"
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


#: Where each request is sent.
TASK_QUEUE: dict[str, str] = {}


def _request(task: str, queue: str = REQUESTS) -> str:
    TASK_QUEUE[task] = queue
    return task


# Requests, callable by a bare ``send_task(name, kwargs=..., queue=...)``.
VIDEO_PROCESS = _request("tasks.video.process")
VIDEO_STATUS = _request("tasks.video.status")
VIDEO_LIST = _request("tasks.video.list")
VIDEO_FAILURES = _request("tasks.video.failures")
VIDEO_CHANGES = _request("tasks.video.changes")
VIDEO_UPLOAD = _request("tasks.video.upload")
VIDEO_SCENES = _request("tasks.video.scenes")
VIDEO_TIMELINE = _request("tasks.video.timeline")
VIDEO_MEDIA = _request("tasks.video.media")
VIDEO_SUBTITLES = _request("tasks.video.subtitles")
VIDEO_CANCEL = _request("tasks.video.cancel")
VIDEO_RETRY = _request("tasks.video.retry")
VIDEO_RERUN = _request("tasks.video.rerun")
VIDEO_DELETE = _request("tasks.video.delete")
ASR_TRANSCRIBE = _request("tasks.asr.transcribe", "asr.online")
TEXT_EMBED = _request("tasks.text.embed", "text.online")
TEXT_RERANK = _request("tasks.text.rerank", "text.online")
VISION_EMBED_TEXTS = _request("tasks.vision.embed_texts", "vision.online")
VISION_EMBED_IMAGES = _request("tasks.vision.embed_images", "vision.online")
FACE_DETECT = _request("tasks.face.detect", "face.online")
PEOPLE_CREATE = _request("tasks.people.create")
PEOPLE_LIST = _request("tasks.people.list")
PEOPLE_GET = _request("tasks.people.get")
PEOPLE_RENAME = _request("tasks.people.rename")
PEOPLE_DELETE = _request("tasks.people.delete")
PEOPLE_ADD_PHOTO = _request("tasks.people.add_photo")
PEOPLE_PHOTOS = _request("tasks.people.photos")
PEOPLE_REMOVE_PHOTO = _request("tasks.people.remove_photo")
PEOPLE_ENROLL = _request("tasks.people.enroll")
PEOPLE_CANCEL = _request("tasks.people.cancel")
PEOPLE_FACES = _request("tasks.people.faces")
PEOPLE_JUDGE = _request("tasks.people.judge")
PEOPLE_MERGE = _request("tasks.people.merge")
PEOPLE_SPLIT = _request("tasks.people.split")
PEOPLE_EVENTS = _request("tasks.people.events")
PEOPLE_UNDO = _request("tasks.people.undo")
MODELS_STATE = _request("tasks.models.state")
MODELS_SWITCH = _request("tasks.models.switch")
MODELS_SAMPLES = _request("tasks.models.samples")
MODELS_RETRY = _request("tasks.models.retry")
MODELS_ACTIVATE = _request("tasks.models.activate")
MODELS_ROLLBACK = _request("tasks.models.rollback")
MODELS_DISCARD = _request("tasks.models.discard")
FLEET_STATE = _request("tasks.fleet.state")
FLEET_RETRY = _request("tasks.fleet.retry")
KEYS_CREATE = _request("tasks.keys.create")
KEYS_LIST = _request("tasks.keys.list")
KEYS_END = _request("tasks.keys.end")
KEYS_CHECK = _request("tasks.keys.check")
WEBHOOKS_CREATE = _request("tasks.webhooks.create")
WEBHOOKS_LIST = _request("tasks.webhooks.list")
WEBHOOKS_DELETE = _request("tasks.webhooks.delete")
WEBHOOKS_DELIVERIES = _request("tasks.webhooks.deliveries")
WEBHOOKS_RESEND = _request("tasks.webhooks.resend")
SEARCH_SCENES = _request("tasks.search.scenes")


def wake_up_task(queue: str) -> str:
    """Name of the task that works on a queue, e.g. ``tasks.asr.work``."""
    return f"tasks.{queue}.work"


def queue_limit_s(queue: str) -> int:
    """Longest time limit of a stage of this queue, seconds; Celery's own limit stands a minute above it."""
    return max(stage.time_limit_s for stage in graph.STAGES.values() if stage.queue == queue)


def gate_queue(node: str) -> str:
    """The private queue a node consumes while its model loads: it never gets a message."""
    return f"gate.{node}"
