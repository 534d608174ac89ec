"""The whole product with canary words in whatever a user can name, say or ask: no log, event or page of Flower has one."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from celery import Celery, signature
from PIL import Image

from db.ids import video_key
from local.servers.ports import find_free_port
from tests.acceptance.commands import run_command
from tests.acceptance.conftest import MakeFleet
from tests.contracts.candidates import sample_picture
from tests.support.excerpt import write_excerpt
from tests.support.fleet import FAMILIES, ROOT, Fleet, eventually
from tests.support.injection import Injection
from tests.support.messages import encode, make_message
from tests.support.pictures import encoded

USER = "u1"
#: In every name, query, text, file name and bad value. Never in an id.
CANARY = "zanzibarquux"
CELERY = str(Path(sys.executable).with_name("celery"))


@pytest.fixture(scope="module")
def fleet(make_fleet: MakeFleet, injection: Injection) -> Fleet:
    """A ready fleet that logs all there is to log."""
    found = make_fleet(SCENEFLEET_LOG_LEVEL="DEBUG", **injection.environment())
    found.start()
    found.wait_ready()
    return found


@contextmanager
def receive_events(redis_url: str) -> Iterator[list[dict[str, Any]]]:
    """Every event of Celery, as Flower receives them."""
    received: list[dict[str, Any]] = []
    app = Celery("events", broker=redis_url, set_as_current=False)
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": received.append})
        capture = {"limit": None, "timeout": None, "wakeup": True}
        thread = threading.Thread(target=receiver.capture, kwargs=capture, daemon=True)
        thread.start()
        eventually(lambda: received, within_s=30, what="the first event")
        try:
            yield received
        finally:
            receiver.should_stop = True
            thread.join(timeout=10)


class Flower:
    """A running Flower, and its pages."""

    def __init__(self, fleet: Fleet, log: Path) -> None:
        self.port = find_free_port()
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [CELERY, "-A", "worker.app", "flower", f"--port={self.port}", "--address=127.0.0.1",
                 "--basic-auth=admin:secret"],
                cwd=ROOT, env=fleet.process_environment(), stdout=sink, stderr=sink,
            )  # fmt: skip

        def is_up() -> bool:
            assert self.process.poll() is None, log.read_text()
            try:
                return bool(self.page("/healthcheck"))
            except OSError:
                return False

        eventually(is_up, within_s=60, what="Flower answers")

    def page(self, path: str) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        request.add_header("Authorization", "Basic " + base64.b64encode(b"admin:secret").decode())
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(answer.read().decode())

    def pages(self) -> dict[str, str]:
        """Every page there is, by path; none without the password."""
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/workers", timeout=20)
        self.page("/api/workers?refresh=1")
        tasks = json.loads(self.page("/api/tasks?limit=1000"))
        workers = json.loads(self.page("/api/workers"))
        paths = ["/", "/workers", "/tasks", "/broker", "/metrics"]
        paths += ["/api/tasks?limit=1000", "/api/task/types", "/api/workers"]
        paths += [f"/worker/{name}" for name in workers]
        paths += [f"/{kind}/{task}" for task in tasks for kind in ("task", "api/task/info")]
        pages = {}
        for path in paths:
            try:
                pages[path] = self.page(path)
            except urllib.error.HTTPError as error:
                assert error.code == 404, path
        assert sum(path.startswith("/task/") for path in pages) > 20
        return pages

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)


def outcome(ask: Callable[[], Any]) -> str:
    """What came of a request: "ok" or the class of its error."""
    try:
        ask()
    except Exception as error:  # noqa: BLE001 - the class is the answer
        return type(error).__name__
    return "ok"


def stranger(fleet: Fleet) -> Celery:
    """The Celery application of an API that has nothing of ours: its messages repeat their arguments as text."""
    return Celery("api", broker=fleet.redis_url, backend=fleet.redis_url, set_as_current=False)


def send(api: Celery, task: str, args: Any = None, *, queue: str = "search", **options: Any) -> str:
    sent = api.send_task(task, args=args, queue=queue, **options)
    try:
        return outcome(lambda: sent.get(timeout=30))
    finally:
        sent.backend = None


def index_and_ask(fleet: Fleet, sample: Path, tmp_path: Path) -> None:
    """Everything that goes well."""
    clip = tmp_path / f"{CANARY}.mp4"
    write_excerpt(sample, clip, caption=CANARY)
    fleet.process(clip, "v1")
    fleet.wait_for("v1", within_s=300)
    client = fleet.client
    assert client.scenes("v1", USER).scenes and client.subtitles("v1", USER).text
    for mode in ("keyword", "hybrid"):
        assert outcome(lambda mode=mode: client.search(USER, f"{CANARY} rocket", mode=mode)) == "ok"  # type: ignore[misc]
    assert fleet.rows("SELECT text FROM screen_texts WHERE text = %s", CANARY), "the caption is read"
    assert client.embed_texts([f"{CANARY} text"]).vectors
    photo = encoded(Image.fromarray(sample_picture(12.5)), "PNG")
    key = f"uploads/{USER}/pictures/{CANARY}.png"
    fleet.storage.put_bytes("uploads", key, photo, "image/png")
    assert outcome(lambda: client.detect_faces(USER, [key])) == "ok"
    person = client.create_person(USER, f"Ann {CANARY}")
    place = client.add_photo(USER, person.person_id, extension="png")
    fleet.storage.put_bytes("uploads", place.storage_key, photo, "image/png")
    client.enroll(USER, person.person_id)
    eventually(
        lambda: (
            client.person(USER, person.person_id).state == "ready"
            and client.people(USER).people
            and fleet.rows("SELECT 1 FROM scene_people WHERE person_id = %s", person.person_id)
        ),
        within_s=200,
        what="Ann is found",
    )
    client.rename_person(USER, person.person_id, f"Anna {CANARY}")
    assert client.people_events(USER).events


def ask_badly(fleet: Fleet) -> None:
    """Requests that are refused, each for its own reason; ours and a stranger's."""
    client, api = fleet.client, stranger(fleet)
    assert outcome(lambda: client.process("v2", USER, f"uploads/{USER}/other/{CANARY}.mp4")) == "InvalidKey"
    assert outcome(lambda: client.detect_faces(USER, [f"uploads/{USER}/x/{CANARY}.png"])) == "ObjectMissing"
    assert outcome(lambda: client.create_person(USER, f"Anna {CANARY}", person_id="p9")) != ""
    bad: list[tuple[str, dict[str, Any]]] = [
        ("tasks.search.scenes", {"user_id": USER, "query": [CANARY]}),
        ("tasks.search.scenes", {"user_id": USER, "query": "x", "mode": CANARY}),
        ("tasks.search.scenes", {"user_id": USER, "query": "x", CANARY: 1}),
        ("tasks.search.scenes", {"user_id": USER, "query": "x", "cursor": CANARY}),
        ("tasks.search.scenes", {"user_id": USER, "query": f"{CANARY} x", "text_model": "unheard-of"}),
        ("tasks.search.scenes", {"user_id": USER, "query": {"__type__": "uuid", "__value__": CANARY}}),
        ("tasks.people.create", {"user_id": USER, "name": CANARY * 100}),
        ("tasks.people.create", {"user_id": USER, "name": f"\x01{CANARY}"}),
        ("tasks.video.subtitles", {"video_id": "v1", "user_id": USER, "format": CANARY}),
        ("tasks.video.process", {"video_id": "v3", "user_id": USER, "storage_key": f"../{CANARY}"}),
        ("tasks.models.switch", {"kind": "text", "to": CANARY}),
    ]
    assert [what for task, kwargs in bad if (what := send(api, task, kwargs=kwargs)) == "ok"] == []
    assert send(api, "tasks.video.status", [CANARY]) == "InvalidRequest"
    assert send(api, f"tasks.{CANARY}", kwargs={"name": CANARY}) == "NotRegistered"
    embed = {"texts": [f"{CANARY} by a stranger"]}
    assert send(api, "tasks.text.embed", kwargs=embed, queue="text.online", shadow=CANARY) == "ok"
    follower = signature("tasks.text.embed", kwargs=embed, queue="text.online", app=api, immutable=True)
    assert send(api, "tasks.text.embed", kwargs=embed, queue="text.online", link=follower) == "ok"
    assert send(api, "tasks.text.embed", kwargs=embed, queue="text.online", expires=-5) == "TaskRevokedError"


def send_garbage(fleet: Fleet) -> None:
    """What is no request at all."""

    message = partial(make_message, "tasks.video.status", {"query": CANARY}, "search")
    garbage: list[Any] = [
        {"name": CANARY},
        *(message(body=encode(body)) for body in (f'[["{CANARY}"', f'"{CANARY}"', f'[["{CANARY}"], {{}}, null]')),
        *(message(**{place: value}) for place, value in (
            ("content-type", f"text/{CANARY}"), ("content-encoding", CANARY), ("headers.task", f"tasks.{CANARY}"),
            ("headers.expires", CANARY), ("headers.eta", CANARY), ("headers.timelimit", CANARY),
            ("headers.shadow", CANARY),
        )),
        message(**{"headers.stamped_headers": [CANARY], "headers.stamps": {CANARY: CANARY}}),
        message(**{"headers.task": {"a": CANARY}, "headers.id": {"a": CANARY}}),
    ]  # fmt: skip
    with redis.Redis.from_url(fleet.redis_url) as client:
        client.lpush("search", CANARY, *map(json.dumps, garbage))
        eventually(lambda: not client.llen("search"), within_s=30, what="the garbage is taken")
    assert outcome(lambda: fleet.client.status("unheard-of", USER)) == "NotFound", "the node lives"


def fail_jobs(fleet: Fleet, injection: Injection, tmp_path: Path, sample: Path) -> None:
    """Jobs that fail: a file that is none, errors of ours and of a library, with causes."""
    broken = tmp_path / f"{CANARY}-broken.mp4"
    broken.write_bytes(CANARY.encode() * 100)
    fleet.process(broken, "broken")
    fleet.client.process("missing", USER, f"uploads/{USER}/missing/{CANARY}-missing.mp4")
    clip = tmp_path / f"{CANARY}-clip.mp4"
    write_excerpt(sample, clip)
    for number, error in enumerate(("ValueError", "ModelFailure", "FileNotFoundError")):
        injection.fail("face", f"fails-{number}", error=error, message=f"no face of {CANARY}")
        fleet.process(clip, f"fails-{number}")
    names = ["broken", "missing", *(f"fails-{number}" for number in range(3))]
    ended = fleet.wait_ended(names, within_s=400)
    assert CANARY in str(ended["missing"].error), "the caller is told"
    assert {status.state for status in ended.values()} == {"failed", "partial"}


def leave_a_request_waiting(fleet: Fleet, look: Callable[[], str]) -> str:
    """What is shown of a request that a node holds; its child is stopped meanwhile."""
    (child,) = fleet.nodes["text"].children
    waits = {"texts": [f"{CANARY} waits"]}
    with ExitStack() as stack, redis.Redis.from_url(fleet.redis_url) as client:
        stack.callback(child.resume)
        child.suspend()
        sent = stranger(fleet).send_task("tasks.text.embed", kwargs=waits, queue="text.online")
        stack.callback(setattr, sent, "backend", None)
        eventually(lambda: not client.llen("text.online"), within_s=20, what="the node has taken the message")
        shown = look()
        child.resume()
        assert sent.get(timeout=60)
    return shown


def provoke_servers(fleet: Fleet) -> None:
    """Errors of Postgres with values in their text, and slow commands of Redis."""
    for statement in (
        "SELECT %s::text::int",
        "SELECT 1 / (length(%s::text) - 12)",
        f"SELECT '{CANARY}' FROM nowhere",
        "INSERT INTO people (user_id, person_id, external_id, name, kind)"
        " SELECT user_id, 'again', 'again', name, kind FROM people",
    ):
        with pytest.raises(psycopg.Error), psycopg.connect(fleet.postgres_url) as connection:
            connection.execute(statement, [CANARY] if "%s" in statement else None)  # type: ignore[arg-type]
    with redis.Redis.from_url(fleet.redis_url) as client:
        client.set("pause", CANARY * 100_000)
        client.delete("pause")


def phrases(fleet: Fleet) -> set[str]:
    """What is said in the videos, three words at a time, and what they show in writing."""
    said: set[str] = set()
    for row in fleet.rows("SELECT transcript FROM scenes"):
        words = row["transcript"].split()
        said |= {" ".join(words[at : at + 3]) for at in range(len(words) - 2)}
    return said


def assert_clean(where: str, text: str, said: set[str]) -> None:
    for word in (CANARY, *said):
        for found in re.finditer(re.escape(word), text, re.IGNORECASE):
            around = text[max(0, found.start() - 300) : found.end() + 100]
            raise AssertionError(f"{where} shows {word!r}: ...{around}...")


@pytest.mark.timeout(900)
def test_nothing_that_users_name_say_or_ask_is_logged_or_shown(
    fleet: Fleet, injection: Injection, sample: Path, tmp_path: Path, postgres: Any, redis_server: Any
) -> None:
    before = {server: server.log.stat().st_size for server in (postgres, redis_server)}
    with ExitStack() as stack:
        events = stack.enter_context(receive_events(fleet.redis_url))
        flower = stack.enter_context(closing(Flower(fleet, tmp_path / "flower.log")))
        index_and_ask(fleet, sample, tmp_path)
        ask_badly(fleet)
        send_garbage(fleet)
        fail_jobs(fleet, injection, tmp_path, sample)
        provoke_servers(fleet)

        def inspect() -> str:
            shown = flower.page("/api/workers?refresh=1")
            for what in ("active", "reserved", "query_task " + "0" * 36, "report", "conf"):
                command = [CELERY, "-A", "worker.app", "inspect", *what.split(), "--json"]
                done = run_command(command, fleet.process_environment(), timeout_s=60)
                shown += done.stdout + done.stderr
            return shown

        waiting = leave_a_request_waiting(fleet, inspect)
        assert "tasks.text.embed" in waiting, "a request was waiting while we looked"
        said = phrases(fleet)
        assert len(said) > 2
        assert_clean("inspect", waiting, said)
        pages = flower.pages()
        with redis.Redis.from_url(fleet.redis_url) as client:
            assert_clean("the slow log", str(client.slowlog_get(1000)), said)
        kinds = {event["type"] for event in events}
        assert {"task-received", "task-started", "task-succeeded", "task-failed"} <= kinds
        assert_clean("an event", json.dumps(events, default=str), said)
        for path, page in pages.items():
            assert_clean(f"Flower's {path}", page, said)
    fleet.stop()
    logs = {path.name: path.read_text(errors="replace") for path in (fleet.home / "logs").iterdir()}
    assert {f"{family}.log" for family in FAMILIES} <= set(logs)
    logs["flower"] = (tmp_path / "flower.log").read_text(errors="replace")
    for server, size in before.items():
        logs[type(server).__name__] = server.log.read_bytes()[size:].decode(errors="replace")
    for name, text in logs.items():
        assert_clean(f"the log of {name}", text, said)
    # Operators still see what happened, where, and to which job.
    face = logs["face.log"]
    video = f"video_id={video_key(USER, 'fails-1')}"
    for told in ("job failed", "error_class=ModelFailure", video, "Traceback", "injection.py", "ValueError"):
        assert told in face, told
    assert re.search(
        r"Task tasks\.search\.scenes\[[-0-9a-f]{36}\] raised expected: InvalidRequest", logs["search.log"]
    )
    assert os.environ.get("LOG_PAYLOADS") is None
