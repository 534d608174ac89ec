"""Every error scenefleet raises on purpose, and whether trying again can help.

Retryable or permanent is decided by the class and nowhere else. A message is one sentence: what was wrong, with
which value, what to do. ``code`` is the stable name stored in ``jobs.error_class`` and shown by ``--json``.
"""

from __future__ import annotations


class ScenefleetError(Exception):
    """Base of all our errors."""

    retryable: bool = False
    #: Whether this failure counts against the job's ``max_failures`` (an outage of a service does not).
    counted: bool = True
    #: Whether its text may stand in logs: it names servers, devices, jobs and settings, never what a caller sent.
    loggable: bool = False

    @property
    def code(self) -> str:
        return type(self).__name__

    def __str__(self) -> str:
        return " ".join(str(arg) for arg in self.args) or (type(self).__doc__ or self.code).split("\n")[0]


class Permanent(ScenefleetError):
    """Trying again can't help: the input or the configuration has to change."""


class Retryable(ScenefleetError):
    """Trying again may help."""

    retryable = True


class QuotaExceeded(Retryable):
    """The user has as much in work as the fleet allows one user: the same request may be sent again later."""


class Outage(Retryable):
    """A service we depend on is away: retried with backoff, not counted as a failure of the job."""

    counted = False


class InvalidRequest(Permanent):
    """The payload of a task, or an argument of a command, is not acceptable."""


class NotFound(Permanent):
    """No such thing for this user."""


class Conflict(Permanent):
    """The thing is in a state that does not allow this."""


class InvalidKey(Permanent):
    """A storage key is not well-formed or lies outside its allowed prefix."""


class BadMedia(Permanent):
    """The file can't be used as a video."""


class LimitExceeded(BadMedia):
    """The file is over one of the configured limits."""


class BadPhoto(BadMedia):
    """The photo can't be used to know a person by."""


class NoFace(BadPhoto):
    """No face was found in the photo."""


class SeveralFaces(BadPhoto):
    """More than one face was found in the photo."""


class SmallFace(BadPhoto):
    """The face in the photo is too small."""


class BlurredFace(BadPhoto):
    """The face in the photo does not show clearly who it is."""


class ObjectMissing(Permanent):
    """The storage has no object under this key."""


class StorageUnavailable(Outage):
    """The storage does not answer, or has no room."""


class DatabaseUnavailable(Outage):
    """Postgres does not answer."""

    loggable = True


class DatabaseBusy(DatabaseUnavailable):
    """Another transaction holds what this one has to change: trying again helps once it has ended."""


class StatementTimeout(DatabaseBusy):
    """A statement took longer than its limit."""


class BrokerUnavailable(Outage):
    """Redis does not answer."""

    loggable = True


class ModelUnavailable(Permanent):
    """A model can't be loaded: file missing, wrong or not in the active profile."""


class ModelDoesNotFit(ModelUnavailable):
    """A model needs more memory than the budget, or than the device has."""

    loggable = True


class DeviceUnavailable(ModelUnavailable):
    """The GPU a model is meant for is missing, busy or not usable."""

    loggable = True


class ModelFailure(Retryable):
    """A model raised while it worked."""


class DeviceOutOfMemory(ModelFailure):
    """The GPU had no memory left, even for one item at a time."""


class StageTimeout(Retryable):
    """A stage ran longer than its hard time limit."""

    loggable = True


class WorkerLost(Retryable):
    """The process that ran the job died."""

    loggable = True


class LeaseLost(ScenefleetError):
    """The job is no longer ours: another attempt, a cancel or a delete took it. The attempt stops and writes nothing."""

    loggable = True
