"""Names on the broker: lanes (queues), task names, where each task is sent, how long it may take.

Everything is published through the default exchange by queue name, so that losing Redis's data loses no binding.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import graph

#: Families that own a model, and so a queue and a readiness of their own.
MODEL_FAMILIES: tuple[str, ...] = ("asr", "text", "vision", "face")
#: Every kind of node.
FAMILIES: tuple[str, ...] = ("media", *MODEL_FAMILIES, "search")
#: Queues whose messages are bells for jobs in the ledger.
LANES: tuple[str, ...] = ("media", *MODEL_FAMILIES)
#: The queue of short requests of an API: accept a video, status, search.
REQUESTS = "search"
#: Seconds after which a request that nobody took is dropped by the broker's consumers.
ONLINE_LIMIT_S = 60
REQUEST_LIMIT_S = 120


@dataclass(frozen=True)
class Family:
    """The queues one node consumes, the first one first."""

    name: str
    queues: tuple[str, ...]

    @property
    def has_model(self) -> bool:
        return self.name in MODEL_FAMILIES


NODES: dict[str, Family] = {
    "media": Family("media", ("media",)),
    "asr": Family("asr", ("asr",)),
    "text": Family("text", ("text.online", "text")),
    "vision": Family("vision", ("vision",)),
    "face": Family("face", ("face",)),
    "search": Family("search", ("search",)),
}

QUEUES: tuple[str, ...] = tuple(queue for family in NODES.values() for queue in family.queues)

# Requests, callable by a bare ``send_task(name, kwargs=..., queue=...)``.
VIDEO_PROCESS = "tasks.video.process"
VIDEO_STATUS = "tasks.video.status"
VIDEO_SCENES = "tasks.video.scenes"
VIDEO_CANCEL = "tasks.video.cancel"
VIDEO_RETRY = "tasks.video.retry"
VIDEO_RERUN = "tasks.video.rerun"
VIDEO_DELETE = "tasks.video.delete"
TEXT_EMBED = "tasks.text.embed"
SEARCH_SCENES = "tasks.search.scenes"
SEARCH_BY_VECTOR = "tasks.search.by_vector"

TASK_QUEUE: dict[str, str] = {
    VIDEO_PROCESS: REQUESTS,
    VIDEO_STATUS: REQUESTS,
    VIDEO_SCENES: REQUESTS,
    VIDEO_CANCEL: REQUESTS,
    VIDEO_RETRY: REQUESTS,
    VIDEO_RERUN: REQUESTS,
    VIDEO_DELETE: REQUESTS,
    SEARCH_SCENES: REQUESTS,
    SEARCH_BY_VECTOR: REQUESTS,
    TEXT_EMBED: "text.online",
}


def bell_task(lane: str) -> str:
    """Name of the task that works on a lane, e.g. ``tasks.asr.work``."""
    return f"tasks.{lane}.work"


def lane_limit_s(lane: str) -> int:
    """Longest time limit of a stage of this lane, seconds; Celery's own limit stands a minute above it."""
    return max(stage.time_limit_s for stage in graph.STAGES.values() if stage.lane == lane)


def gate_queue(node: str) -> str:
    """The private queue a node consumes while its model loads: it never gets a message."""
    return f"gate.{node}"
