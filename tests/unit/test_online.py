"""The buffer of online requests, and the child's batches, without Celery's processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from billiard.exceptions import WorkerLostError
from celery.worker import state as worker_state
from hypothesis import given, strategies as st

from shared.admission import HEADER, estimate_tokens
from shared.contracts import EmbedTexts
from shared.errors import InvalidRequest, ModelFailure, ModelUnavailable, Overloaded
from shared.settings import Settings
from worker.broker.celery_patches import call_after_acknowledge
from worker.models.vector_cache import Kept
from worker.online import batch, dispatcher as dispatcher_module, vectors
from worker.online.buffer import Buffer, Waiting
from worker.online.dispatcher import Dispatcher
from worker.online.operations import OPERATIONS, Computed, Operation, Used, checked_texts
from worker.telemetry import request_signals


def waiting(name: str, items: int = 1, *, tokens: int = 1, task: str = "t", most: int = 32) -> Waiting:
    return Waiting(name, task, [tokens] * items, most)


def buffer_of(*requests: Waiting) -> Buffer:
    buffer = Buffer()
    for request in requests:
        buffer.add(request)
    return buffer


def taken(buffer: Buffer, size: int = 32, tokens: int = 10_000) -> list[tuple[str, int, int]]:
    return [(part.waiting.request, part.first, part.end) for part in buffer.take(size, tokens)]


def test_a_batch_has_the_oldest_requests_of_one_task() -> None:
    buffer = buffer_of(waiting("a"), waiting("b", task="other"), waiting("c", 2), waiting("d", 2))
    assert taken(buffer, 4) == [("a", 0, 1), ("c", 0, 2), ("d", 0, 1)]
    # The rest of "d" is put back by whoever computed its part.
    assert taken(buffer, 4) == [("b", 0, 1)] and not len(buffer) and buffer.items == 0


def test_single_requests_pass_a_large_one() -> None:
    large = waiting("large", 1000)
    buffer = buffer_of(large, *(waiting(f"s{number}") for number in range(8)))
    first = taken(buffer, 16)
    assert first[0] == ("large", 0, 8) and len(first) == 9
    buffer.add(large)
    buffer.add(waiting("late"))
    assert taken(buffer, 16) == [("large", 8, 23), ("late", 0, 1)]


def test_a_batch_ends_at_its_tokens_and_a_longer_item_goes_alone() -> None:
    buffer = buffer_of(
        waiting("a", tokens=60), waiting("b", tokens=50), waiting("c", tokens=500), waiting("d")
    )
    assert [taken(buffer, tokens=100) for _ in range(4)] == [
        [("a", 0, 1)], [("b", 0, 1)], [("c", 0, 1)], [("d", 0, 1)]
    ]  # fmt: skip


def test_after_a_loss_each_is_computed_alone_and_first() -> None:
    buffer = buffer_of(waiting("a"), waiting("b", 3), waiting("c"))
    for part in reversed(buffer.take(32, 100)):
        buffer.put_back(part)
    buffer.add(waiting("d"))
    assert [taken(buffer) for _ in range(4)] == [[("a", 0, 1)], [("b", 0, 3)], [("c", 0, 1)], [("d", 0, 1)]]


@given(
    requests=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), max_size=20),
    size=st.integers(1, 40),
    tokens=st.integers(1, 200),
)
def test_every_item_is_taken_once(requests: list[tuple[int, int]], size: int, tokens: int) -> None:
    held = [
        waiting(str(number), items, tokens=cost, most=40) for number, (items, cost) in enumerate(requests)
    ]
    buffer, seen = buffer_of(*held), {request.request: [] for request in held}
    while len(buffer):
        parts = buffer.take(size, tokens)
        assert parts
        lengths = [part.end - part.first for part in parts]
        assert sum(lengths) <= size
        used = sum(
            length * part.waiting.tokens[0] for length, part in zip(lengths, parts, strict=True) if length
        )
        assert used <= tokens or sum(lengths) == 1
        for part in parts:
            seen[part.waiting.request] += range(part.first, part.end)
            if not part.last:
                buffer.add(part.waiting)
    assert buffer.items == buffer.tokens == 0
    assert seen == {str(number): list(range(items)) for number, (items, _) in enumerate(requests)}


USED = Used("m", "1", "cpu", 2)


def operation(fails: Sequence[str], calls: list[list[str]]) -> Operation[Any]:
    def compute(options: object, items: list[str]) -> Computed:
        calls.append(items)
        for item in items:
            if item in fails:
                raise ModelFailure(f"{item} is too hard")
        return Computed(USED, [item.upper() for item in items])

    return Operation(
        contract=EmbedTexts,
        fields=("texts",),
        prepare=lambda request, first, end: checked_texts("texts", request["texts"], first, end),
        options=lambda request: None,
        compute=compute,
        answer=lambda request, used, outputs: {"said": outputs},
    )


def work(kind: Operation[Any], *texts: str) -> batch._Work:
    return batch._Work({"texts": texts}, kind, kind.prepare({"texts": texts}, 0, len(texts)))


def test_one_item_at_fault_fails_alone() -> None:
    calls: list[list[str]] = []
    kind = operation(["bad"], calls)
    works = {
        place: work(kind, *texts) for place, texts in enumerate((["a", "b"], ["bad"], ["c", "bad", "d\0"]))
    }
    assert batch._compute_all(works) == {}
    assert calls[0] == ["a", "b", "bad", "c", "bad"]
    assert works[0].done.outputs == ["A", "B"]
    assert str(works[1].done.outputs[0]) == "bad is too hard"
    good, bad, wrong = works[2].done.outputs
    assert (good, type(bad), type(wrong)) == ("C", ModelFailure, InvalidRequest)
    with pytest.raises(ModelFailure):
        batch._assemble(works[2], "n")
    works[2].request = type("Partial", (), {"partial": True})()
    answer = batch._assemble(works[2], "n")
    assert answer["said"] == ["C", None, None] and list(answer["errors"]) == ["1", "2"]
    assert answer["errors"]["1"] == {"class": "ModelFailure", "message": "bad is too hard"}
    assert "texts.2='d\\x00' is not acceptable" in answer["errors"]["2"]["message"]


def test_a_model_that_is_not_there_is_asked_once() -> None:
    calls: list[list[str]] = []

    def compute(options: object, items: list[str]) -> Computed:
        calls.append(items)
        raise ModelUnavailable("no model")

    kind = operation([], calls)
    object.__setattr__(kind, "compute", compute)
    failed = batch._compute_all({0: work(kind, "a", "b"), 1: work(kind, "c")})
    assert [str(failed[place]) for place in (0, 1)] == ["no model"] * 2 and calls == [["a", "b", "c"]]


class Embedder:
    """Counts what it is asked to embed."""

    class spec:
        name, revision = "m", "1"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, texts: list[str]) -> list[vectors.Vector]:
        self.asked.append(texts)
        return [vectors.Vector(np.array([len(text), 1], np.float32), tokens=len(text)) for text in texts]


def test_equal_texts_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_recent", type(vectors._recent)())
    model: Any = Embedder()
    first = vectors.embed_once(model, "text", ["a", "bb", "a"], model)
    assert [vector.values.tolist() for vector in first] == [[1, 1], [2, 1], [1, 1]]
    assert [vector.cached for vector in first] == [False, False, True]
    again = vectors.embed_once(model, "text", ["bb", "ccc"], model)
    assert [(vector.cached, vector.tokens) for vector in again] == [(True, 2), (False, 3)]
    vectors.embed_once(model, "vision", ["a"], model)
    assert model.asked == [["a", "bb"], ["ccc"], ["a"]]
    # Not for long: it is no cache.
    now_s = vectors.time.monotonic() + vectors.RECENT_S
    monkeypatch.setattr(vectors.time, "monotonic", lambda: now_s)
    vectors.embed_once(model, "text", ["a"], model)
    assert model.asked[-1] == ["a"] and len(vectors._recent) == 1


def test_the_shared_cache_is_asked_first_and_told_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_recent", type(vectors._recent)())
    kept = {"a": Kept(np.array([7, 7], np.float32), 3)}

    class Store:
        def get_many(self, model: str, revision: str, kind: str, texts: Sequence[str]) -> list[Any]:
            return [kept.get(text) for text in texts]

        def put_many(
            self, model: str, revision: str, kind: str, texts: Sequence[str], found: Any, tokens: Any
        ) -> None:
            kept.update(zip(texts, map(Kept, found, tokens), strict=True))

    monkeypatch.setattr(vectors, "_find_store", None)
    vectors.use_store(lambda: cast("Any", Store()))
    model: Any = Embedder()
    found = vectors.embed_once(model, "text", ["a", "bb"], model)
    shown = [(vector.values.tolist(), vector.cached, vector.tokens) for vector in found]
    assert shown == [([7, 7], True, 3), ([2, 1], False, 2)]
    assert model.asked == [["bb"]] and kept["bb"].values.tolist() == [2, 1] and kept["bb"].tokens == 2


def test_vectors_are_written_as_numbers_or_as_base64() -> None:
    found = [vectors.Vector(np.array([0.5, -1], np.float32)), None]
    model = {"model": "m", "revision": "1", "dim": 2}
    assert vectors.write_vectors(USED, "floats", found) == {**model, "vectors": [[0.5, -1.0], None]}
    packed = {"vectors": [], "packed": ["AAAAPwAAgL8=", None]}
    assert vectors.write_vectors(USED, "base64", found) == {**model, **packed}


def test_tokens_are_estimated_by_script() -> None:
    assert [estimate_tokens(item) for item in ("", "word " * 8, "日本語", None, 7)] == [1, 11, 4, 1, 1]


def test_overloaded_says_when_to_try_again() -> None:
    refusal = Overloaded("queue x is full", 2.5)
    assert str(refusal) == "queue x is full: send it again in 2.5 s"
    # As the client rebuilds it.
    assert Overloaded(str(refusal)).retry_after_s == 2.5 and str(Overloaded(str(refusal))) == str(refusal)
    assert Overloaded("full").retry_after_s == 1.0


class Consumer(SimpleNamespace):
    """As much of Celery's consumer as a dispatcher uses; ``sent``: the batches in the pool."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.soon: list[Any] = []
        self.later: list[tuple[float, Any]] = []
        tasks = SimpleNamespace(qos=lambda **_: None, cancel=lambda: None)
        super().__init__(
            connection=SimpleNamespace(channel=lambda: None),
            app=SimpleNamespace(
                amqp=SimpleNamespace(Consumer=lambda *_, **__: tasks),
                conf=SimpleNamespace(accept_content=["json"]),
            ),
            create_task_handler=lambda: None,
            pool=SimpleNamespace(
                num_processes=1, apply_async=lambda *_, **options: self.sent.append(options)
            ),
            hub=SimpleNamespace(call_soon=self.soon.append),
            timer=SimpleNamespace(
                call_after=lambda after_s, call: (
                    self.later.append((after_s, call)) or SimpleNamespace(cancel=lambda: None)
                )
            ),
            connection_errors=(),
            channel_errors=(),
        )

    def turn(self) -> None:
        """One round of the event loop."""
        soon, self.soon[:] = list(self.soon), []
        for call in soon:
            call()

    @property
    def sizes(self) -> list[int]:
        return [len(options["args"][0]) for options in self.sent]


class Message(SimpleNamespace):
    """As much of Celery's request as a dispatcher uses."""

    def __init__(self, name: str, *texts: str) -> None:
        super().__init__(
            id=name, type="t", kwargs={"texts": list(texts or "x")}, request_dict={}, body=b"", time_start=None,
            _content_type=None, _content_encoding=None, _already_revoked=False, ignore_result=True, ends=[],
            task=SimpleNamespace(time_limit=60), revoked=lambda: False, on_success=lambda value: self.ends.append(value),
        )  # fmt: skip

    def __hash__(self) -> int:
        return id(self)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Consumer, Dispatcher]]]:
    monkeypatch.setitem(OPERATIONS, "t", operation([], []))
    monkeypatch.setattr(worker_state, "reserved_requests", set())

    def make(**settings: Any) -> tuple[Consumer, Dispatcher]:
        consumer = Consumer()
        return consumer, Dispatcher(consumer, Settings(**settings), "t.online")

    yield make
    call_after_acknowledge(None)


Node = Callable[..., tuple[Consumer, Dispatcher]]


def test_what_comes_while_the_child_computes_is_the_next_batch(node: Node) -> None:
    consumer, dispatcher = node()
    dispatcher.add(Message("a"))
    consumer.turn()
    for name in "bcd":
        dispatcher.add(Message(name))
        consumer.turn()
    assert consumer.sizes == [1]
    consumer.sent[0]["callback"]([batch.Outcome("answered", 1)])
    # Such an end comes twice if the child hangs first and is killed then.
    consumer.sent[0]["error_callback"](SimpleNamespace(exception=RuntimeError()))
    consumer.turn()
    assert consumer.sizes == [1, 3]


class Job:
    type = "tasks.text.work"


def test_a_batch_waits_for_the_job_that_runs(node: Node) -> None:
    consumer, dispatcher = node()
    worker_state.reserved_requests.add(Job())
    dispatcher.add(Message("a"))
    consumer.turn()
    assert consumer.sizes == []
    worker_state.reserved_requests.clear()
    dispatcher.look()
    assert consumer.sizes == [1]


def test_an_idle_child_may_wait_for_a_full_batch(node: Node) -> None:
    consumer, dispatcher = node(BATCH_TIMEOUT_MS=500, BATCH_SIZE=3)
    dispatcher.add(Message("a"))
    consumer.turn()
    ((after_s, call),) = consumer.later
    assert 0 < after_s <= 0.5 and consumer.sizes == []
    for name in "bcd":
        dispatcher.add(Message(name))
    consumer.turn()
    assert consumer.sizes == [3] and len(consumer.later) == 1
    call()
    assert consumer.sizes == [3]


def test_a_large_request_goes_on_after_each_part(node: Node) -> None:
    consumer, dispatcher = node(BATCH_SIZE=4)
    message = Message("large", *"abcdef")
    dispatcher.add(message)
    consumer.turn()
    (member,) = consumer.sent[0]["args"][0]
    assert (member.first, member.end, member.last, member.outputs) == (0, 4, False, ())
    consumer.sent[0]["callback"]([batch.Outcome("more", b"part")])
    consumer.turn()
    (member,) = consumer.sent[1]["args"][0]
    assert (member.first, member.end, member.last, member.outputs) == (4, 6, True, (b"part",))
    consumer.sent[1]["callback"]([batch.Outcome("answered", "done")])
    assert message.ends == ["done"]


def test_what_is_too_large_or_too_much_is_refused_at_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer, dispatcher = node(ONLINE_QUEUE_ITEMS=5, ONLINE_QUEUE_TOKENS=100)
    refused: list[tuple[str, str]] = []
    monkeypatch.setattr(
        dispatcher, "_fail", lambda request, error: refused.append((request.id, type(error).__name__))
    )
    huge = Message("huge")
    huge.body = b" " * 9_000_000
    for message in (
        huge,
        Message("a", *"abc"),
        Message("b", *"def"),
        Message("long", "w " * 500),
        Message("c"),
    ):
        dispatcher.add(message)
    assert refused == [("huge", "InvalidRequest"), ("b", "Overloaded"), ("long", "Overloaded")]
    consumer.turn()
    assert consumer.sizes == [2]
    # An empty buffer takes a request of any size; a list longer than a request may have is one item, to be refused.
    dispatcher.add(Message("long", "w " * 500))
    dispatcher.add(Message("list", *["x"] * 1001))
    assert len(refused) == 4 and refused[3] == ("list", "Overloaded")


def test_callers_who_reserve_nothing_share_the_limit_of_one_user(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer, dispatcher = node(ONLINE_USER_ITEMS=3)
    refused: list[str] = []
    monkeypatch.setattr(dispatcher, "_fail", lambda request, error: refused.append(request.id))
    reserved = Message("reserved", *"abcdef")
    reserved.request_dict = {HEADER: "lease"}
    for message in (Message("a", *"ab"), reserved, Message("b", *"cd"), Message("c")):
        dispatcher.add(message)
    assert refused == ["b"]
    consumer.turn()
    dispatcher.add(Message("b", *"cd"))
    assert refused == ["b"]


def test_of_a_lost_batch_each_request_is_answered_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer, dispatcher = node()
    failed: list[tuple[str, str]] = []
    monkeypatch.setattr(
        dispatcher, "_fail", lambda request, error: failed.append((request.id, type(error).__name__))
    )
    monkeypatch.setattr(dispatcher, "_is_answered", lambda request: request.id == "answered")
    for name in ("first", "a", "answered", "b"):
        dispatcher.add(Message(name))
        consumer.turn()
    consumer.sent[0]["callback"]([batch.Outcome("answered", 1)])
    consumer.turn()
    lost = SimpleNamespace(exception=SimpleNamespace(exc=WorkerLostError()))
    for size in (3, 1, 1):
        assert len(consumer.sent[-1]["args"][0]) == size
        consumer.sent[-1]["error_callback"](lost)
        consumer.turn()
    # "a" was lost alone, then "b".
    assert failed == [("a", "WorkerLost"), ("b", "WorkerLost")]
    assert consumer.sizes == [1, 3, 1, 1]


def test_requests_whose_model_only_another_node_has_go_back_to_the_queue(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer, dispatcher = node()
    queues, back = ["t.online"], list[str]()
    tasks = dispatcher._tasks
    tasks.cancel_by_queue, tasks.add_queue = queues.remove, queues.append
    consumer.app.amqp.queues, tasks.consume = {"t.online": "t.online"}, lambda: None
    for name in "ab":
        message = Message(name)
        message.reject = lambda requeue, name=name: back.append(name) if requeue else None
        dispatcher.add(message)
    consumer.turn()
    consumer.sent[0]["callback"]([batch.Outcome("answered", 1), batch.Outcome("elsewhere")])
    assert (back, queues) == (["b"], [])
    dispatcher.consume()
    assert queues == [], "another node takes them meanwhile"
    now_s = dispatcher_module.time.monotonic()
    monkeypatch.setattr(dispatcher_module.time, "monotonic", lambda: now_s + dispatcher_module._LEFT_S)
    dispatcher.consume()
    assert queues == ["t.online"]


@pytest.mark.parametrize(
    ("model", "others", "kind"), [("m", True, "elsewhere"), ("m", False, "answered"), ("", True, "answered")]
)
def test_a_request_is_for_others_only_if_they_have_its_model(
    model: str, others: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ModelUnavailable("Model m can't be loaded: no such file")
    error.model = model
    monkeypatch.setattr(batch, "_read", lambda member: batch._Work(None, None, []))  # type: ignore[arg-type]
    monkeypatch.setattr(batch, "_compute_all", lambda works: dict.fromkeys(works, error))
    monkeypatch.setattr(batch, "_count", lambda *_: None)
    monkeypatch.setattr(batch, "_answer", lambda member, answer, _: batch.Outcome("answered", answer))
    monkeypatch.setattr(batch, "get_runtime", lambda: None)
    monkeypatch.setattr(batch.peers, "have", lambda name, runtime: others)
    monkeypatch.setattr(batch.current_app.backend, "together", nullcontext, raising=False)
    member = batch.Member("t", "id", {}, b"", None, None, 0, 1, True, (), 0.0)
    assert [outcome.kind for outcome in batch.run([member])] == [kind]


def test_a_request_that_is_not_answered_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_count", lambda *_: None)
    monkeypatch.setattr(batch.current_app.backend, "together", nullcontext, raising=False)
    headers = {"expires": "2026-01-01T00:00:00+00:00"}
    member = batch.Member("t", "id", headers, b"", None, None, 0, 1, True, (), 0.0)
    assert [outcome.kind for outcome in batch.run([member])] == ["expired"]
    assert not request_signals._began_s and not batch._answers


def test_after_a_lost_connection_nothing_more_is_sent(node: Node) -> None:
    consumer, dispatcher = node()
    dispatcher.add(Message("a"))
    consumer.turn()
    dispatcher.add(Message("b"))
    dispatcher.close()
    consumer.sent[0]["callback"]([batch.Outcome("more", b"")])
    consumer.turn()
    assert consumer.sizes == [1]
    # The next connection's begins without the old one's batches.
    again = Dispatcher(consumer, Settings(), "t.online")
    again.add(Message("a"))
    consumer.turn()
    assert consumer.sizes == [1, 1]
