"""Runs in a pool child: one batch of parts of requests, computed together, each request answered by Celery's tracer.

The tracer runs the request's own task, which finds its answer here. So an answer is stored, published, linked and logged as
that of any other task, and an error of one request ends no other.
"""

from __future__ import annotations

import pickle
import time
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from celery import current_app
from celery.app.trace import trace_task_ret
from celery.utils.serialization import get_pickleable_exception
from kombu.serialization import loads

from shared.admission import estimate_tokens
from shared.broker import SENT_HEADER
from shared.contracts import parse
from shared.errors import ModelUnavailable, Retryable, ScenefleetError
from shared.logs import get_logger
from shared.paths import without_paths
from shared.routing import TASK_QUEUE
from worker import peers
from worker.broker.clock import fleet_clock
from worker.online.operations import OPERATIONS, Operation, Used
from worker.runtime import get_runtime
from worker.telemetry import metrics, request_signals

log = get_logger(__name__)


class Member(NamedTuple):
    """A part of a request, as the main process sends it."""

    task: str
    task_id: str
    #: Of its message.
    headers: dict[str, Any]
    body: Any
    content_type: str | None
    content_encoding: str | None
    first: int
    end: int
    last: bool
    #: What was returned for its earlier parts.
    outputs: tuple[bytes, ...]
    #: When the node took it, seconds since 1970.
    received_s: float


class Outcome(NamedTuple):
    """What became of a part. ``answered``: what Celery's tracer returns; ``more``: packed outputs; ``elsewhere``: only other nodes have its model."""

    kind: Literal["answered", "more", "expired", "elsewhere"]
    value: Any = None


@dataclass(eq=False)
class _Done:
    """What is computed of a request, in one part or several."""

    used: set[Used] = field(default_factory=set)
    #: An output or an exception per item.
    outputs: list[Any] = field(default_factory=list)
    queued_s: float = 0.0
    run_s: float = 0.0


@dataclass(eq=False)
class _Work:
    request: Any
    operation: Operation[Any]
    prepared: list[Any]
    done: _Done = field(default_factory=_Done)


#: Answers, and errors to raise, of the requests whose task is about to run in this process.
_answers: dict[str, Any] = {}


def run(members: list[Member]) -> list[Outcome]:
    """Compute a batch; one outcome per member. An error of a member becomes its answer."""
    started_s, now_s = time.monotonic(), time.time()
    works: dict[int, _Work] = {}
    failed: dict[int, Exception] = {}
    expired: set[int] = set()
    for place, member in enumerate(members):
        if is_expired(member.headers):
            expired.add(place)
            continue
        try:
            works[place] = _read(member)
        except Exception as error:  # noqa: BLE001 - it is this member's answer
            failed[place] = error
    failed |= _compute_all(works)
    run_s = time.monotonic() - started_s
    _count(members, works, now_s)
    log.info("batch computed", task=members[0].task, requests=len(members), expired=len(expired),
             items=sum(len(work.prepared) for work in works.values()), seconds=round(run_s, 3))  # fmt: skip
    elsewhere = {error for error in set(failed.values()) if _is_for_others(error)}
    outcomes = []
    with current_app.backend.together():
        for place, member in enumerate(members):
            if place in expired:
                outcomes.append(Outcome("expired"))
            elif failed.get(place) in elsewhere:
                outcomes.append(Outcome("elsewhere"))
            elif place in failed:
                outcomes.append(_answer(member, failed[place], started_s))
            else:
                queued_s = max(0.0, now_s - member.received_s)
                outcomes.append(_end_part(member, works[place], started_s, queued_s, run_s))
    return outcomes


def _count(members: Sequence[Member], works: Mapping[int, _Work], now_s: float) -> None:
    queue = TASK_QUEUE[members[0].task]
    items = [item for work in works.values() for item in work.prepared]
    tokens = sum(estimate_tokens(item) for item in items if isinstance(item, str))
    used = next((used.model for work in works.values() for used in work.done.used), None)
    metrics.observe_batch(queue.partition(".")[0], len(items), tokens, used)
    for member in members:
        if not member.first:
            # A sender that does not say when it sent is counted from the arrival at the node.
            metrics.observe_wait(queue, now_s - member.headers.get(SENT_HEADER, member.received_s))


def answer_of(task: str, task_id: str | None, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request whose task runs now; computed here if it came in no batch."""
    found = _answers.pop(task_id or "", None)
    if isinstance(found, Exception):
        raise found
    if found is not None:
        return dict(found)
    operation = OPERATIONS[task]
    request = parse(operation.contract, payload)
    work = _Work(request, operation, operation.prepare(request, 0, len(operation.count_tokens(payload))))
    started_s = time.monotonic()
    for error in _compute_all({0: work}).values():
        raise error
    work.done.run_s = time.monotonic() - started_s
    return _assemble(work, current_app.current_task.request.hostname if current_app.current_task else None)


def is_expired(headers: Mapping[str, Any]) -> bool:
    """Whether the caller of a message waits no longer; its headers are checked."""
    if not headers.get("expires"):
        return False
    expires = datetime.fromisoformat(headers["expires"])
    return fleet_clock.now() > (expires if expires.tzinfo else expires.replace(tzinfo=UTC)).timestamp()


def _read(member: Member) -> _Work:
    """Check the payload of a message and prepare its items."""
    operation = OPERATIONS[member.task]
    # Without a type it is decoded already.
    body = member.body
    if member.content_type:
        body = loads(body, member.content_type, member.content_encoding, accept={"application/json"})
    request = parse(operation.contract, body[1])
    if body[0]:
        # The task itself says how to send it, before it looks for an answer.
        return _Work(request, operation, [])
    return _Work(request, operation, operation.prepare(request, member.first, member.end))


def _compute_all(works: Mapping[int, _Work]) -> dict[int, Exception]:
    """Compute all items, those with the same options together; return the errors that concern a whole request."""
    groups: dict[tuple[int, Hashable], list[int]] = defaultdict(list)
    for place, work in works.items():
        groups[id(work.operation), work.operation.options(work.request)].append(place)
    failed: dict[int, Exception] = {}
    for (_, options), places in groups.items():
        good = [
            (place, index)
            for place in places
            for index, item in enumerate(works[place].prepared)
            if not isinstance(item, Exception)
        ]
        items = [works[place].prepared[index] for place, index in good]
        try:
            used, outputs = _compute(works[places[0]].operation, options, items)
        except Exception as error:  # noqa: BLE001 - it is the answer of these requests
            failed |= dict.fromkeys(places, error)
            continue
        for place in places:
            done = works[place].done
            done.used.update(used)
            done.outputs = list(works[place].prepared)
        for (place, index), output in zip(good, outputs, strict=True):
            works[place].done.outputs[index] = output
    return failed


def _compute(operation: Operation[Any], options: Hashable, items: list[Any]) -> tuple[set[Used], list[Any]]:
    """Compute items; where that fails, halve them until the ones at fault are found, which get the error."""
    try:
        computed = operation.compute(options, items)
        return {computed.used}, computed.outputs
    except ModelUnavailable:
        raise
    except Exception as error:
        if not items:
            raise
        if len(items) == 1:
            return set(), [error]
        log.warning("batch halved after an error", items=len(items), kind=type(error).__name__)
    half = len(items) // 2
    first, second = (_compute(operation, options, part) for part in (items[:half], items[half:]))
    return first[0] | second[0], first[1] + second[1]


def _is_for_others(error: Exception) -> bool:
    """Whether a model is missing on this node that another one has."""
    if not isinstance(error, ModelUnavailable) or not error.model:
        return False
    found = peers.have(error.model, get_runtime())
    log.warning(
        "requests not computed: a model is missing here", model=error.model, left_to_others=found, error=error
    )
    return found


def _end_part(member: Member, work: _Work, started_s: float, queued_s: float, run_s: float) -> Outcome:
    """Answer a request after its last part, or after an error that ends it; otherwise return its outputs so far."""
    done, earlier = work.done, [_unpack(packed) for packed in member.outputs]
    partial = getattr(work.request, "partial", False)
    has_error = any(isinstance(output, Exception) for output in done.outputs)
    if not member.last and (partial or not has_error):
        outputs = [
            get_pickleable_exception(output) if isinstance(output, Exception) else output
            for output in done.outputs
        ]
        return Outcome("more", pickle.dumps(_Done(done.used, outputs, queued_s, run_s)))
    for part in reversed(earlier):
        done.used |= part.used
        done.outputs[:0] = part.outputs
    done.queued_s = earlier[0].queued_s if earlier else queued_s
    done.run_s = run_s + sum(part.run_s for part in earlier)
    try:
        return _answer(member, _assemble(work, member.headers.get("hostname")), started_s)
    except Exception as error:  # noqa: BLE001 - it is this member's answer
        return _answer(member, error, started_s)


def _unpack(packed: bytes) -> _Done:
    # Packed by a child of this node; it has only been in the main process since.
    done: _Done = pickle.loads(packed)  # noqa: S301
    return done


def _assemble(work: _Work, node: str | None) -> dict[str, Any]:
    """The answer to a request.

    Raises:
        the first error of an item, unless the request allows ``partial`` answers and some item succeeded.
    """
    done, request = work.done, work.request
    errors = {place: output for place, output in enumerate(done.outputs) if isinstance(output, Exception)}
    if errors and (not getattr(request, "partial", False) or len(errors) == len(done.outputs)):
        raise next(iter(errors.values()))
    if len(done.used) != 1:
        raise Retryable("the searched model was switched while the request was computed: send it again")
    (used,) = done.used
    outputs = [None if place in errors else output for place, output in enumerate(done.outputs)]
    answer = {
        **work.operation.answer(request, used, outputs),
        "device": used.device,
        "node": node,
        "timings": {"queued_s": round(done.queued_s, 6), "run_s": round(done.run_s, 6)},
        "cached": sum(getattr(output, "cached", False) for output in outputs),
    }
    if errors:
        log.info(
            "items failed",
            items=len(errors),
            kinds=sorted({type(error).__name__ for error in errors.values()}),
        )
        answer["errors"] = {str(place): _describe(error) for place, error in errors.items()}
    return answer


def _describe(error: Exception) -> dict[str, str]:
    without_paths(error)
    kind = error.code if isinstance(error, ScenefleetError) else type(error).__name__
    return {"class": kind, "message": str(error)}


def _answer(member: Member, answer: dict[str, Any] | Exception, started_s: float) -> Outcome:
    """Let Celery's tracer run the task of a request, which takes its answer from here.

    Args:
        started_s: when its batch began, by the monotonic clock.
    """
    _answers[member.task_id] = answer
    request_signals.note_began(member.task_id, started_s)
    try:
        traced = trace_task_ret(
            member.task,
            member.task_id,
            member.headers,
            member.body,
            member.content_type,
            member.content_encoding,
            app=current_app._get_current_object(),
        )
    finally:
        with suppress(KeyError):
            del _answers[member.task_id]
    return Outcome("answered", traced)
