"""Removes data of callers and models from log lines, which keep ids, classes, places and durations.

Names, queries, transcripts and file names reach log lines in three ways: arguments of a library's message (Celery logs
results, bodies and errors), the text of an exception, and the last line of a traceback. Each is reduced to
what operators need: the class of an error with its error number or SQLSTATE, and the stack without messages. Own errors
whose text names only servers and devices are marked ``loggable`` and logged completely.

Imports none of the libraries that raise these errors: it knows them by name.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from types import TracebackType
from typing import Any

from .errors import ScenefleetError

#: Replaces a value. ``LOG_PAYLOADS=true`` shows the value.
HIDDEN = "(hidden)"

#: Loggers of our own code, by the first part of their names: their lines contain no payloads.
_OURS = frozenset({"cli", "db", "shared", "tasks", "worker", "tests"})
#: Libraries whose messages without arguments are constants of their code.
_CONSTANT = frozenset({"celery", "kombu", "billiard", "multiprocessing"})
#: Libraries that see no payload at all.
_TRUSTED = frozenset({"alembic"})

#: Errors of libraries whose text names a connection only.
_LOGGABLE = frozenset(
    {
        "redis.exceptions.ConnectionError",
        "redis.exceptions.TimeoutError",
        "kombu.exceptions.OperationalError",
    }
)

#: Fields of Celery's own messages about a task that hold no payload.
_FIELDS = frozenset({"id", "name", "runtime", "description", "hostname", "eta", "internal"})

#: Messages of Celery and its pool whose arguments are queues, nodes, URLs without password, tasks' names and ids.
_PLAIN = (
    "Connected to %s",
    "%s ready.",
    "Started consuming from %s",
    "Canceling queue %s",
    "consumer: Cannot connect to %s",
    "Hard time limit (",
    "Soft time limit (",
    "Discarding revoked task: %s[%s]",
    "Terminating %s (%s)",
    "Timed out waiting for UP message",
    "Process %r pid:%r exited",
    'Process "%s" pid:%r',
    "process %s",
    "Events of group",
)

#: Keys of our own lines under which a text could be anybody's: of an error, or of a library that wrote to a file.
_TEXTS = frozenset({"error", "reason", "stderr"})

_CLASS_NAME = re.compile(r"[A-Za-z_][\w.]*(?=\()")


def describe_error(error: BaseException) -> str:
    """An error as a log line may show it: its class, and its text or numbers where these can't hold a caller's value."""
    name = type(error).__name__
    if getattr(error, "loggable", False):
        return f"{name}: {error}"
    if isinstance(error, ScenefleetError):
        return name
    cause = getattr(error, "orig", None) or error
    if state := getattr(cause, "sqlstate", None):
        constraint = getattr(getattr(cause, "diag", None), "constraint_name", None)
        named = f", constraint {constraint}" if constraint else ""
        return f"{name}: {type(cause).__name__} (SQLSTATE {state}{named})"
    if any(f"{kind.__module__}.{kind.__qualname__}" in _LOGGABLE for kind in type(error).__mro__):
        return f"{name}: {error}"
    if isinstance(error, OSError) and isinstance(error.errno, int):
        # Without the file's name.
        return f"{name}: [Errno {error.errno}] {os.strerror(error.errno)}"
    return name


def error_class_of(representation: str) -> str:
    """The class in the ``repr()`` of an error."""
    found = _CLASS_NAME.match(representation)
    return found.group() if found else HIDDEN


ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]


def format_stack(exc_info: ExcInfo) -> str:
    """A traceback with its causes, in which ``describe_error`` stands for each error's text."""
    return "\n".join(_stack(exc_info[1], exc_info[2], set()))


def _stack(error: BaseException | None, trace: TracebackType | None, seen: set[int]) -> Iterator[str]:
    """Each error once, whatever circle causes and groups make."""
    came_from = ""
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield f"{came_from}Traceback (most recent call last):\n{_frames(trace)}{describe_error(error)}"
        for one in getattr(error, "exceptions", ()):
            if isinstance(one, BaseException):
                yield from _stack(one, one.__traceback__, seen)
        following = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        error, trace = following, following.__traceback__ if following is not None else None
        came_from = "which came from\n"


def _frames(trace: TracebackType | None) -> str:
    try:
        return "".join(traceback.format_list(traceback.extract_tb(trace)))
    except Exception:  # noqa: BLE001 - the pool's stand-ins for tracebacks may lack a part
        return "  (no stack)\n"


def hide_payloads(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog: errors as ``describe_error`` shows them.

    Pass the exception itself (``error=error``): a text under ``error``, ``reason`` or ``stderr`` is hidden.
    """
    for key, value in event.items():
        if isinstance(value, BaseException):
            event[key] = describe_error(value)
        elif key in _TEXTS and value and isinstance(value, str):
            event[key] = HIDDEN
    return event


def redact_record(record: logging.LogRecord) -> logging.LogRecord:
    """A record of the standard library's logging without payloads; the same one if it holds none."""
    package = record.name.partition(".")[0]
    if package in _TRUSTED or isinstance(record.msg, Mapping):
        return record
    redacted = copy.copy(record)
    if package in _OURS:
        if isinstance(record.args, tuple):
            redacted.args = tuple(
                describe_error(a) if isinstance(a, BaseException) else a for a in record.args
            )
        return redacted
    if isinstance(record.msg, BaseException):
        redacted.msg = describe_error(record.msg)
    elif not isinstance(record.msg, str):
        redacted.msg = HIDDEN
    elif not record.args and package not in _CONSTANT:
        # Formatted before it was logged: its values can't be separated.
        redacted.msg = f"message of {record.module}.py:{record.lineno} {HIDDEN}"
    else:
        redacted.msg, redacted.args = _redact(record.msg, record.args)
    return redacted


def _redact(message: str, args: Any) -> tuple[str, Any]:
    if isinstance(args, Mapping):
        # The value would be hidden anyway.
        message = message.removesuffix(": %(return_value)s")
        return message, {name: _field(name, value) for name, value in args.items()}
    if not isinstance(args, tuple):
        return message, args
    if message.startswith("Discarding revoked task: %s[%s] ("):
        return "Discarding revoked task: %s[%s]", args
    plain = message.startswith(_PLAIN)
    return message, tuple(_argument(value, plain) for value in args)


def _field(name: str, value: Any) -> Any:
    if name in _FIELDS:
        return value
    return error_class_of(value) if name == "exc" and isinstance(value, str) else _argument(value, False)


def _argument(value: Any, plain: bool) -> Any:
    if isinstance(value, BaseException):
        return describe_error(value)
    if plain or value is None or isinstance(value, (bool, int, float)):
        return value
    return HIDDEN
