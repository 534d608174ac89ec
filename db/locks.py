"""The numbers of advisory locks, in one table so that no two uses share one.

A lock with a second key (``pg_advisory_xact_lock(lock, hashtext(key))``) is a lock per user or per queue.
"""

from __future__ import annotations

from enum import IntEnum


class AdvisoryLock(IntEnum):
    """What each lock protects."""

    #: Creating the reader's role and its rights, in this database.
    READER_ROLE = 7_305_000
    #: ``scenefleet db bootstrap``, over all databases of the server.
    BOOTSTRAP = 7_305_001
    #: Building or dropping a vector index.
    VECTOR_INDEX = 7_305_002
    #: Opening a switch of models.
    OPEN_SWITCH = 7_305_003
    #: Per queue: counting the running jobs of users, if they are limited.
    RUNNING_JOBS = 7_305_004
    #: Per user: counting the videos in progress, if they are limited.
    OPEN_VIDEOS = 7_305_005
    #: Per user: counting the webhooks.
    WEBHOOKS = 7_305_006
    #: Per user: numbering unknown people; the last lock of a transaction. Users whose ids have the same hash wait for each other.
    UNKNOWN_PEOPLE = 7_305_100
