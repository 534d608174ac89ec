"""The error classes of scenefleet, and whether a retry can help.

Only the class decides whether an error is retryable. A message is one sentence: what was wrong, with
which value, and the remedy. ``code`` is the stable name stored in ``jobs.error_class`` and shown by ``--json``.
"""

from __future__ import annotations

import re


class ScenefleetError(Exception):
    """Base class of all scenefleet errors."""

    retryable: bool = False
    #: Whether this failure counts against the job's ``max_failures`` (an outage of a server does not).
    counted: bool = True
    #: Whether its text may be logged: it names servers, devices, jobs and settings, never a caller's data.
    loggable: bool = False

    @property
    def code(self) -> str:
        return type(self).__name__

    def __str__(self) -> str:
        return " ".join(str(arg) for arg in self.args) or (type(self).__doc__ or self.code).split("\n")[0]


class Permanent(ScenefleetError):
    """A retry can't help: the input or the configuration has to change."""


class Retryable(ScenefleetError):
    """A retry may help."""

    retryable = True


class QuotaExceeded(Retryable):
    """The user has reached a limit: the same request may be sent again later."""


class Overloaded(Retryable):
    """Too many requests wait: the same request may be sent again after ``retry_after_s``."""

    def __init__(self, message: str = "", retry_after_s: float | None = None) -> None:
        # An error that went through the result store is made again from its message.
        said = re.search(r"in ([0-9.]+) s$", message)
        self.retry_after_s = retry_after_s if retry_after_s is not None else float(said[1]) if said else 1.0
        super().__init__(
            message if said or retry_after_s is None else f"{message}: send it again in {retry_after_s:g} s"
        )


class Outage(Retryable):
    """A server or node is unavailable: retried with backoff, not counted as a failure of the job."""

    counted = False


class InvalidRequest(Permanent):
    """The payload of a task, or an argument of a command, is not acceptable."""


class NotFound(Permanent):
    """This user has no such object."""


class Conflict(Permanent):
    """The state of the object does not allow this."""


class InvalidKey(Permanent):
    """A storage key is malformed or outside its allowed prefix."""


class BadMedia(Permanent):
    """The file is not a usable video."""


class LimitExceeded(BadMedia):
    """The file exceeds a configured limit."""


class BadPhoto(BadMedia):
    """The photo can't be used for a person's profile."""


class NoFace(BadPhoto):
    """No face was found in the photo."""


class SeveralFaces(BadPhoto):
    """More than one face was found in the photo."""


class SmallFace(BadPhoto):
    """The face in the photo is too small."""


class BlurredFace(BadPhoto):
    """The face in the photo is not sharp or clear enough."""


class ObjectMissing(Permanent):
    """The storage has no object under this key."""


class StorageUnavailable(Outage):
    """The storage does not answer, or is full."""


class DatabaseUnavailable(Outage):
    """Postgres does not answer."""

    loggable = True


class DatabaseBusy(DatabaseUnavailable):
    """Another transaction has locked the rows: a retry helps when it has ended."""


class StatementTimeout(DatabaseBusy):
    """A statement took longer than its limit."""


class BrokerUnavailable(Outage):
    """Redis does not answer."""

    loggable = True


class ModelUnavailable(Permanent):
    """A model can't be loaded: file missing, wrong or not in the active profile."""

    #: The model that this process could not load; empty: the request, or the profile, has none.
    model: str = ""


class ModelDoesNotFit(ModelUnavailable):
    """A model needs more memory than the budget, or than the device has."""

    loggable = True


class DeviceUnavailable(ModelUnavailable):
    """The GPU of a model is missing, busy or not usable."""

    loggable = True


class ModelFailure(Retryable):
    """A model raised an error."""


class DeviceOutOfMemory(ModelFailure):
    """The GPU had no memory left, even for one item at a time."""


class StageTimeout(Retryable):
    """A stage ran longer than its hard time limit."""

    loggable = True


class WorkerLost(Retryable):
    """The process that ran the job crashed."""

    loggable = True


class LeaseLost(ScenefleetError):
    """This attempt no longer owns the job (reclaimed, cancelled or deleted): it stops and writes nothing."""

    loggable = True
