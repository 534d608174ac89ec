"""The fleet from outside: a process with nothing of ours, and the celery program with only the URLs configured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from shared.errors import ModelUnavailable
from shared.routing import TASK_QUEUE
from tests.acceptance.lite.conftest import CONCURRENCY
from tests.support.fleet import FAMILIES, ROOT, Fleet, eventually

USER = "u1"
CELERY = str(Path(sys.executable).with_name("celery"))
#: One line of JSON in, {task, kwargs}; one line out, {ok} or {error, message}. Celery and redis only.
STRANGER = """
import importlib.util, json, sys
for name in ("shared", "tasks", "worker", "db", "cli", "scenefleet"):
    assert importlib.util.find_spec(name) is None, name
from celery import Celery
fleet = Celery(broker=sys.argv[1], backend=sys.argv[1])
for line in sys.stdin:
    request = json.loads(line)
    try:
        sent = fleet.send_task(request["task"], kwargs=request["kwargs"], queue="search")
        answer = {"ok": sent.get(timeout=30)}
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A Python that can import Celery and what it needs, and nothing of ours."""
    site = next(path for path in map(Path, sys.path) if (path / "celery" / "__init__.py").is_file())
    folder = tmp_path_factory.mktemp("bare")
    names = ("celery", "kombu", "billiard", "vine", "redis", "amqp", "click", "dateutil", "six.py", "tzdata",
             "packaging", "click_didyoumean", "click_plugins.py", "click_plugins", "click_repl", "prompt_toolkit",
             "wcwidth", "tzlocal", "async_timeout", "typing_extensions.py")  # fmt: skip
    for name in names:
        if (site / name).exists():
            (folder / name).symlink_to(site / name)
    for found in site.glob("*.dist-info"):
        if found.name.split("-")[0].lower() in {*names, "python_dateutil"}:
            (folder / found.name).symlink_to(found)
    code = f"import sys; sys.path.append({str(folder)!r}); exec({STRANGER!r})"
    return [sys.executable, "-I", "-S", "-c", code]


class Stranger:
    """An API process that has nothing of ours."""

    def __init__(self, command: list[str], redis_url: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [*command, redis_url],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, task: str, **kwargs: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"task": task, "kwargs": kwargs}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def video(self, request: str, video_id: str, **kwargs: Any) -> dict[str, Any]:
        return self.ask(f"tasks.video.{request}", video_id=video_id, user_id=USER, **kwargs)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=30) == 0


@pytest.fixture
def stranger(fleet: Fleet, bare_python: list[str], tmp_path: Path) -> Iterator[Stranger]:
    found = Stranger(bare_python, fleet.redis_url, tmp_path)
    yield found
    found.close()


def test_a_process_without_anything_of_ours_can_do_everything(
    fleet: Fleet, stranger: Stranger, spoken: Path
) -> None:
    key = fleet.upload(spoken, "bare")
    receipt = stranger.video("process", "bare", storage_key=key)["ok"]
    assert receipt == {
        "version": 1, "video_id": "bare", "user_id": USER, "state": "uploaded", "run": 1, "accepted": True
    }  # fmt: skip

    def state() -> Any:
        """Whether it is indexed, its late stages included."""
        found = stranger.video("status", "bare")["ok"]
        ended = {stage["state"] for stage in found["stages"]} <= {"done", "skipped", "reused"}
        return found["state"] == "indexed" and ended

    eventually(state, within_s=120, what="the video is indexed")
    status = stranger.video("status", "bare")["ok"]
    assert {stage["stage"]: stage["state"] for stage in status["stages"]} == {
        "split": "done", "asr": "done", "text": "done", "vision": "skipped", "face": "done", "ocr": "done",
        "sidecar": "done", "rendition": "done",
    }  # fmt: skip
    scenes = stranger.video("scenes", "bare", limit=1)["ok"]
    assert [scene["idx"] for scene in scenes["scenes"]] == [0] and scenes["next_after_idx"] == 0
    rest = stranger.video("scenes", "bare", after_idx=0)["ok"]
    assert [scene["idx"] for scene in rest["scenes"]] == [1] and rest["next_after_idx"] is None
    for query, mode in (("rocket", "keyword"), ("a spaceship", "semantic")):
        asked = {"user_id": USER, "query": query, "mode": mode, "video_id": "bare"}
        found = stranger.ask("tasks.search.scenes", **asked)["ok"]
        assert (found["mode"], found["hits"][0]["idx"]) == (mode, 0)
    assert stranger.video("cancel", "bare")["ok"]["accepted"] is False
    refused = stranger.video("retry", "bare")
    assert refused["error"] == "Conflict" and "nothing failed; use rerun" in refused["message"]
    assert stranger.video("rerun", "bare", stages=["text"])["ok"]["run"] == 2
    eventually(state, within_s=60, what="the rerun is indexed")
    assert stranger.video("delete", "bare")["ok"]["state"] == "deleted"
    message = "no video 'bare': check the id, or send tasks.video.process first"
    assert stranger.video("status", "bare") == {"error": "NotFound", "message": message}


def test_requests_arrive_after_redis_lost_everything(fleet: Fleet, stranger: Stranger) -> None:
    """A warm API does not declare its queue again, and needs not: by queue name no binding is involved."""
    assert stranger.video("status", "unknown")["error"] == "NotFound"
    with redis.Redis.from_url(fleet.redis_url) as client:
        client.flushall()
    assert stranger.video("status", "unknown")["error"] == "NotFound"


def test_inspect_works(fleet: Fleet, outside: Celery) -> None:
    processes = {f"{family}@{os.uname().nodename}": CONCURRENCY.get(family, 1) for family in FAMILIES}
    # The celery program with nothing configured but the URLs.
    urls = {"POSTGRES_URL": fleet.postgres_url, "REDIS_URL": fleet.redis_url}
    done = subprocess.run(
        [CELERY, "-A", "worker.app", "inspect", "registered", "--json"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(fleet.home / "empty"), **urls},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    registered = json.loads(done.stdout)
    assert set(registered) == set(processes)
    assert all(set(TASK_QUEUE) <= set(tasks) for tasks in registered.values())
    inspect = outside.control.inspect(timeout=20, limit=len(processes))
    assert set(inspect.active()) == set(processes)
    stats = inspect.stats()
    assert {name: found["pool"]["max-concurrency"] for name, found in stats.items()} == processes
    queues = inspect.active_queues()
    names = [queue["name"] for queue in queues[f"text@{os.uname().nodename}"]]
    assert [name for name in names if not name.startswith("gate")] == ["text.online", "text"]
    assert {queue["exchange"]["name"] for found in queues.values() for queue in found} == {""}


def test_a_profile_without_a_model_says_so(outside: Celery, fleet: Fleet) -> None:
    for task, payload, says in (
        ("tasks.text.rerank", {"query": "x", "documents": ["y"]}, "The profile has no rerank model"),
        ("tasks.text.embed", {"texts": ["y"], "lexical": True}, "Model all-minilm-l6-v2 gives no lexical weights"),
    ):  # fmt: skip
        with pytest.raises(Exception, match=says):
            outside.send_task(task, kwargs=payload, queue="text.online").get(timeout=60)
    with pytest.raises(ModelUnavailable, match="no rerank model"):
        fleet.client.rerank("x", ["y"])
    assert len(fleet.client.embed_texts(["y"]).vectors[0]) == 384
