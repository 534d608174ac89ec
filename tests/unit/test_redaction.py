"""Log lines without payloads: what is taken out of foreign messages, errors and tracebacks, and what stays."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import structlog
from celery.app.trace import LOG_FAILURE, LOG_RECEIVED, LOG_SUCCESS
from redis.exceptions import ConnectionError as RedisAway, ResponseError

from shared.errors import DatabaseUnavailable, InvalidRequest, NoFace
from shared.logs import configure_logs, get_logger
from shared.redaction import describe_error
from shared.settings import Settings

SECRET = "zanzibarquux"


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is logged; the process's own logging is put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for hook in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(f"sys.{hook}", None)
    monkeypatch.setattr("threading.excepthook", None)
    yield io.StringIO()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def configure(stream: io.StringIO, **settings: Any) -> None:
    configure_logs(Settings(**settings))
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)


@pytest.fixture
def lines(stream: io.StringIO) -> Any:
    configure(stream, SCENEFLEET_LOG_LEVEL="DEBUG")
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_celery_says_which_task_and_no_more(lines: Any) -> None:
    log = logging.getLogger("celery.app.trace")
    fields = {"id": "7", "name": "tasks.text.embed", "args": SECRET, "kwargs": SECRET, "traceback": SECRET}
    log.info(LOG_RECEIVED, fields)
    log.info(LOG_SUCCESS, {**fields, "runtime": 0.25, "return_value": SECRET})
    log.info(LOG_FAILURE, {**fields, "description": "raised expected", "exc": f"InvalidRequest('{SECRET}')"})
    assert [line["event"] for line in lines()] == [
        "Task tasks.text.embed[7] received",
        "Task tasks.text.embed[7] succeeded in 0.25s",
        "Task tasks.text.embed[7] raised expected: InvalidRequest",
    ]


@pytest.mark.parametrize(
    ("logger", "message", "args", "shown"),
    [
        ("celery.worker.consumer.consumer", "body was %s", (SECRET,), "body was (hidden)"),
        ("celery.worker.consumer.consumer", "%s and %d", ({SECRET: 1}, 5), "(hidden) and 5"),
        ("celery.worker.consumer.consumer", "because: %r", (ValueError(SECRET),), "because: 'ValueError'"),
        ("celery.apps.worker", "%s ready.", ("text@host",), "text@host ready."),
        ("celery.worker", "Started consuming from %s", ("text.online",), "Started consuming from text.online"),
        ("kombu.connection", "no arguments", (), "no arguments"),
        ("urllib3.connectionpool", 'url "%s" took %d s', (SECRET, 3), 'url "(hidden)" took 3 s'),
        ("alembic.runtime", "Running upgrade %s", ("0007",), "Running upgrade 0007"),
        ("worker.runner", "took %s s, %s", (3, NoFace(SECRET)), "took 3 s, NoFace"),
    ],
)  # fmt: skip
def test_foreign_messages_keep_their_wording(
    lines: Any, logger: str, message: str, args: tuple[Any, ...], shown: str
) -> None:
    logging.getLogger(logger).warning(message, *args)
    assert lines()[0]["event"] == shown


def test_a_message_formatted_beforehand_is_named_by_its_place(lines: Any) -> None:
    logging.getLogger("some_library").error(f"could not read {SECRET}")
    (line,) = lines()
    assert SECRET not in json.dumps(line) and line["logger"] == "some_library"
    assert line["event"].startswith("message of test_redaction.py:")


def test_errors_in_our_lines_are_described(lines: Any) -> None:
    log = get_logger("worker.test")
    log.warning("job failed", error=NoFace(f"{SECRET}.jpg: no face"), job_id=5, stage="enroll", seconds=0.5)
    log.warning("job failed", error=f"{SECRET}.jpg: no face")
    log.warning("put off", error=DatabaseUnavailable("Postgres at host does not answer"), reason=None)
    first, second, third = lines()
    assert (first["error"], first["job_id"], first["stage"], first["seconds"]) == ("NoFace", 5, "enroll", 0.5)
    assert second["error"] == "(hidden)"
    assert third["error"] == "DatabaseUnavailable: Postgres at host does not answer"


def test_a_traceback_keeps_its_frames_and_classes(lines: Any) -> None:
    def read(name: str) -> None:
        try:
            Path(f"/nowhere/{name}").read_bytes()
        except OSError as error:
            raise InvalidRequest(f"{name} can't be read") from error

    try:
        read(SECRET)
    except InvalidRequest:
        logging.getLogger("worker.test").exception("failed")
    shown = lines()[0]["exception"]
    assert SECRET not in shown
    assert "in read" in shown and "InvalidRequest" in shown
    assert "FileNotFoundError: [Errno 2] No such file or directory" in shown


def test_groups_notes_and_circles_are_survived(lines: Any) -> None:
    inner = ValueError(SECRET)
    inner.add_note(SECRET)
    group = ExceptionGroup(SECRET, [inner, TypeError(SECRET)])
    inner.__context__ = group
    logging.getLogger("worker.test").error("failed", exc_info=group)
    shown = lines()[0]["exception"]
    assert SECRET not in shown and "ValueError" in shown and "TypeError" in shown


def test_warnings_and_uncaught_errors_go_the_same_way(lines: Any) -> None:
    import sys
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn(f"odd value {SECRET}", stacklevel=1)
    sys.excepthook(ValueError, ValueError(SECRET), None)
    shown = lines()
    assert SECRET not in json.dumps(shown) and shown[-1]["event"] == "process ends by an error"


def test_errors_of_servers_say_what_is_wrong_with_the_server() -> None:
    assert describe_error(RedisAway("Error 111 connecting to host:6379")).endswith("host:6379")
    assert describe_error(ResponseError(f"WRONGTYPE {SECRET}")) == "ResponseError"
    assert describe_error(OSError(28, "No space left", f"/data/{SECRET}")) == (
        "OSError: [Errno 28] No space left on device"
    )


def test_payloads_are_logged_when_asked_for(stream: io.StringIO) -> None:
    configure(stream, LOG_PAYLOADS=True)
    get_logger("worker.test").warning("job failed", error=f"{SECRET}.jpg")
    logging.getLogger("celery.app.trace").warning("body was %s", SECRET)
    assert stream.getvalue().count(SECRET) == 2
