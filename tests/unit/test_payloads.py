"""What a worker shows of its tasks: neither arguments nor results, whatever a message brings in its headers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app.amqp import AMQP

from shared import settings as settings_module
from shared.broker import HidingAMQP
from shared.client import Client
from worker.broker.celery_patches import EventSender, FleetEvents, HidingRequest

SECRET = "zanzibarquux"


@pytest.fixture
def app() -> Celery:
    found = Celery("test", broker="memory://", backend="cache+memory://", set_as_current=False)

    @found.task(name="tasks.text.embed")
    def embed(**_: Any) -> None: ...

    return found


def message(app: Celery, amqp: type[AMQP] = AMQP) -> Any:
    """As a stranger's send_task makes it."""
    built = amqp(app).as_task_v2("7", "tasks.text.embed", (), {"texts": [SECRET]}, shadow=SECRET)
    coding = {"content_type": "application/json", "content_encoding": "utf-8"}
    return SimpleNamespace(**built._asdict(), payload=built.body, delivery_info={}, **coding)


@pytest.fixture(params=[False, True], ids=["hiding", "LOG_PAYLOADS"])
def shows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LOG_PAYLOADS", str(request.param).lower())
    settings_module.get_settings.cache_clear()
    yield request.param
    settings_module.get_settings.cache_clear()


def test_a_request_shows_its_id_and_task(app: Celery, shows: bool) -> None:
    received = HidingRequest(message(app), app=app)
    shown = [received.argsrepr, received.kwargsrepr, received.name, received.info(), repr(received)]
    header = {name: received.request_dict[name] for name in ("argsrepr", "kwargsrepr", "shadow")}
    assert (SECRET in str(shown)) is shows and (SECRET in str(header)) is shows
    assert received.id == "7" and received.info()["id"] == "7"
    assert received.kwargs == {"texts": [SECRET]}, "the task gets them"


def test_events_keep_ids_times_and_the_class_of_an_error() -> None:
    sent: list[dict[str, Any]] = []

    class Listening(EventSender):
        def publish(self, type: str, fields: dict[str, Any], *args: Any, **options: Any) -> None:
            sent.append({"type": type, **fields})

    app = Celery("test", broker="memory://", set_as_current=False)
    dispatcher = Listening(connection=app.connection_for_write(), app=app)
    dispatcher.send("task-succeeded", uuid="7", result=SECRET, runtime=0.5)
    dispatcher.send("task-failed", uuid="7", exception=f"InvalidRequest({SECRET!r})", traceback=SECRET)
    dispatcher.send("task-received", uuid="7", name="t", args=SECRET, kwargs=SECRET)
    assert SECRET not in str(sent)
    assert [event.get("runtime") for event in sent] == [0.5, None, None]
    assert sent[1]["exception"] == "InvalidRequest" and {event["uuid"] for event in sent} == {"7"}


def test_our_own_messages_do_not_repeat_their_arguments(app: Celery) -> None:
    built = message(app, HidingAMQP)
    assert built.body[1] == {"texts": [SECRET]}
    assert SECRET not in str([built.headers["argsrepr"], built.headers["kwargsrepr"]])
    assert isinstance(Client("redis://nowhere")._app.amqp, HidingAMQP)


def test_the_fleets_application_hides() -> None:
    from worker.app import app as fleet

    assert isinstance(fleet.amqp, HidingAMQP) and isinstance(fleet.events, FleetEvents)
    assert all(
        task.Request == "worker.broker.celery_patches:HidingRequest"
        for name, task in fleet.tasks.items()
        if name.startswith("tasks.")
    )
