"""Structured logs: one JSON object per line (or console lines), with ids bound once per job.

No line contains data of callers or models, unless LOG_PAYLOADS is on (shared/redaction.py).
"""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType
from typing import Any

import structlog

from .redaction import format_stack, hide_payloads, redact_record
from .settings import Settings


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Formats records without payloads."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(redact_record(record))


def configure_logs(settings: Settings) -> None:
    """Send structlog's and the standard library's records to stderr in one format."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    hiding: list[structlog.typing.Processor] = [] if settings.log_payloads else [hide_payloads]
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    kind = structlog.stdlib.ProcessorFormatter if settings.log_payloads else _Formatter
    formatter = kind(
        foreign_pre_chain=[*before, structlog.stdlib.add_logger_name],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *hiding,
            structlog.processors.format_exc_info
            if settings.log_payloads
            else structlog.processors.ExceptionRenderer(format_stack),
            renderer,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    _log_what_nobody_catches()


def _log_what_nobody_catches() -> None:
    """Send warnings and exceptions that end a thread or the process through the same format."""
    logging.captureWarnings(True)
    log = logging.getLogger("worker")

    def ends_process(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        log.critical("process ends by an error", exc_info=(kind, error, trace))

    def ends_thread(args: threading.ExceptHookArgs) -> None:
        name = args.thread.name if args.thread is not None else "unknown"
        error = args.exc_value or args.exc_type()
        log.error("thread %s ends by an error", name, exc_info=(args.exc_type, error, args.exc_traceback))

    def not_raised(args: Any) -> None:
        error = args.exc_value or args.exc_type()
        log.error("error where none can be raised", exc_info=(args.exc_type, error, args.exc_traceback))

    sys.excepthook = ends_process
    threading.excepthook = ends_thread
    sys.unraisablehook = not_raised


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; call with an event and key=value pairs."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger
