"""The trace that work belongs to, as ``traceparent`` of W3C Trace Context writes it (https://www.w3.org/TR/trace-context/).

Messages and jobs carry it whether or not traces are exported (tracing.py), so that the trace of a caller who has one is not
interrupted. No dependencies.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

HEADER = "traceparent"
#: A later version may append fields; version ff is invalid.
_PATTERN = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_SAMPLED = 1


@dataclass(frozen=True, kw_only=True)
class TraceContext:
    """A span, as its children know it."""

    #: 32 and 16 hexadecimal digits.
    trace_id: str
    span_id: str
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def parse(text: object) -> TraceContext | None:
    """The context of a header or a row; None: there is none, or it is invalid, which is the same by the specification."""
    found = _PATTERN.fullmatch(text) if isinstance(text, str) else None
    if found is None or not found[1].strip("0") or not found[2].strip("0"):
        return None
    # Version 00 has no more fields.
    if found[4] and found[0].startswith("00"):
        return None
    return TraceContext(trace_id=found[1], span_id=found[2], sampled=bool(int(found[3], 16) & _SAMPLED))


def make() -> TraceContext:
    """The beginning of a new trace."""
    return TraceContext(trace_id=secrets.token_hex(16), span_id=secrets.token_hex(8), sampled=True)


_current: ContextVar[TraceContext | None] = ContextVar("trace", default=None)


def current() -> TraceContext | None:
    """The span that this code runs in."""
    return _current.get()


@contextmanager
def using(context: TraceContext | None) -> Iterator[None]:
    """Run the block in a span."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
