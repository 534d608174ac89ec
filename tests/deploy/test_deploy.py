"""The image and docker-compose.yml, whole: built, started, used from outside, hurt, and stopped (`make test-deploy`).

Where the images of Python and of the servers can't be pulled, stand-ins take their names (tests/deploy/standins.py); the
end of the run's log says which.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from minio import Minio
from minio.error import S3Error

from tests.acceptance.lite.test_outside import Stranger, bare_python
from tests.deploy import standins, values
from tests.deploy.engine import ROOT, Deployment, Engine, find_engine
from tests.support.figures import RecordFigure
from tests.support.fleet import ENDED, eventually

__all__ = ["bare_python"]

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(3600)]

USER = "u1"
SERVERS = ("postgres", "redis", "minio")
ONE_SHOTS = ("bootstrap", "buckets", "migrate")
BUCKETS = ("uploads", "sidecars", "tmp")
#: An image of ours to test instead of building one.
BUILT = os.environ.get("SCENEFLEET_IMAGE", "")
#: Kept for the next run, containers and volumes are not: an image takes minutes to make.
KEEP_IMAGES = bool(os.environ.get("SCENEFLEET_KEEP_IMAGES"))


class Images(NamedTuple):
    """What the containers run: our image, and which others are stand-ins."""

    engine: Engine
    ours: str
    standins: list[str]


SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
#: The services of the profile `cpu` that are nodes.
NODES = [
    name
    for name, service in SERVICES.items()
    if "cpu" in service.get("profiles", []) and service["command"][:2] == ["scenefleet", "node"]
]
STAYING = (*SERVERS, *NODES, "flower", "api")


def default_of(text: str) -> str:
    """`${NAME:-value}` -> value."""
    return text.partition(":-")[2].removesuffix("}")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """Our image, built from Dockerfile.gpu with the engines of lite, and the servers'."""
    engine = find_engine(tmp_path_factory.mktemp("engine"))
    base = default_of(SERVICES["text"]["build"]["args"]["PYTHON_IMAGE"])
    servers = {name: default_of(SERVICES[name]["image"]) for name in SERVERS}
    there = {name for name in (base, *servers.values(), BUILT) if name and engine.has_image(name)}
    made = standins.provide(engine, base, servers)
    ours = BUILT or "localhost/scenefleet:test-deploy"
    if not BUILT:
        index = os.environ.get("TORCH_INDEX_URL")
        more = {"TORCH_INDEX_URL": index} if index else {}
        engine.build(ours, ROOT / "Dockerfile.gpu", ROOT, EXTRAS="lite,api", PYTHON_IMAGE=base, **more)
    yield Images(engine, ours, made)
    if not KEEP_IMAGES:
        for name in {ours, base, *servers.values()} - there:
            engine.call("image", "rm", "--force", name, check=False)
        if engine.name == "podman":
            engine.call("image", "prune", "--force", check=False)


@pytest.fixture(scope="module")
def deployment(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The fleet of the profile `cpu`, all of it healthy."""
    folder, project = tmp_path_factory.mktemp("deployment"), f"scenefleet-{secrets.token_hex(3)}"
    made = Deployment(images.engine, folder, values.deployment_values(images.ours), project)
    try:
        made.up([*STAYING, *ONE_SHOTS])
        made.wait_healthy(STAYING)
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def stranger(
    deployment: Deployment, bare_python: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Stranger:
    """An API's process, with Celery and nothing of ours, on the host."""
    url = f"redis://:{deployment.values['REDIS_PASSWORD']}@127.0.0.1:{deployment.values['REDIS_PORT']}/0"
    return Stranger(bare_python, url, tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="module")
def bucket(deployment: Deployment) -> Minio:
    """The storage from outside, with the nodes' key."""
    return storage(deployment, "STORAGE_ACCESS_KEY", "STORAGE_SECRET_KEY")


def storage(deployment: Deployment, key: str, secret: str) -> Minio:
    found = deployment.values
    return Minio(f"127.0.0.1:{found['MINIO_PORT']}", found[key], found[secret], secure=False)


def send(stranger: Stranger, bucket: Minio, video_id: str) -> None:
    """Upload the sample and have it accepted; a request that a dying server swallowed is sent again."""
    key = f"uploads/{USER}/{video_id}/demo.mp4"
    bucket.fput_object("uploads", key, str(ROOT / "samples" / "demo.mp4"))

    def accepted() -> Any:
        return stranger.video("process", video_id, storage_key=key).get("ok")

    answer = eventually(accepted, within_s=120, what=f"acceptance of {video_id}", every_s=0.5)
    assert answer["video_id"] == video_id, answer


def wait_for(stranger: Stranger, video_id: str, *states: str, within_s: float = 600) -> str:
    """The state of a video, once it is one of these."""

    def reached() -> str:
        state = stranger.video("status", video_id).get("ok", {}).get("state")
        return state if state in states else ""

    return eventually(reached, within_s=within_s, what=f"{video_id} is {states}", every_s=0.5)


# --- the image


def test_the_image(images: Images, record_figure: RecordFigure) -> None:
    (found,) = json.loads(images.engine.call("image", "inspect", images.ours).stdout)
    for name in images.standins:
        record_figure("stand-in, not the real image", name)
    record_figure("size of the image with the extras lite", f"{found['Size'] / 1e9:.2f} GB")
    record_figure("engine", images.engine.name)
    assert found["Config"]["User"] == "10001:10001"
    assert found["Size"] < 2.0e9


# --- what stands


def test_no_process_has_a_right_to_spare(deployment: Deployment) -> None:
    for service in STAYING:
        text = deployment.inside(service, "cat", "/proc/1/status").stdout
        status = dict(re.findall(r"^(\w+):\t(.*)$", text, re.M))
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0, service
        assert int(status["CapBnd"], 16) == 0, service
        assert status["NoNewPrivs"] == "1", service
        user = status["Uid"].split()[0]
        # MinIO's image has no user of its own: root without a capability.
        assert user == {"postgres": "999", "redis": "999", "minio": "0"}.get(service, "10001"), service
        for place in ("/", "/etc", "/usr", "/opt"):
            tried = deployment.inside(service, "sh", "-c", f"echo x > {place}/written", check=False)
            assert tried.returncode != 0 and "ead-only" in tried.stderr, (service, place, tried.stderr)
        if service in NODES:
            places = "echo x > /tmp/written && echo x > /var/lib/scenefleet/written"
            deployment.inside(service, "sh", "-c", places)
            tried = deployment.inside(service, "sh", "-c", "echo x > /models/written", check=False)
            assert tried.returncode != 0


def test_memory_and_processes_are_limited(deployment: Deployment) -> None:
    units = {"m": 2**20, "g": 2**30}
    for service in STAYING:
        text = SERVICES[service]["mem_limit"]
        wanted = deployment.values.get(text[2:].partition(":")[0], default_of(text) or text)
        found = deployment.engine.inspect(deployment.container(service))["HostConfig"]
        assert found["Memory"] == int(wanted[:-1]) * units[wanted[-1]], service
        assert found["PidsLimit"] == SERVICES[service]["pids_limit"], service
        # The kernel's word, by either version of cgroups.
        files = "/sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes"
        held = deployment.inside(service, "sh", "-c", f"cat {files} 2>/dev/null", check=False).stdout.split()
        assert held[:1] == [str(found["Memory"])], (service, held)


def test_a_node_that_takes_too_much_memory_is_killed_alone(deployment: Deployment) -> None:
    greedy = "import mmap\nm = mmap.mmap(-1, 2 * 2**30)\nfor i in range(0, len(m), 4096): m[i] = 1\nprint('had it')"
    tried = deployment.inside("search", "python", "-c", greedy, check=False)
    assert tried.returncode != 0 and "had it" not in tried.stdout
    deployment.wait_healthy(["search"], within_s=180)


def test_the_nodes_database_user_owns_tables_and_nothing_more(deployment: Deployment) -> None:
    script = (
        "import psycopg\nfrom shared.settings import get_settings\n"
        "with psycopg.connect(get_settings().postgres_url, autocommit=True) as c:\n"
        "    print(c.execute('SELECT rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication FROM pg_roles WHERE rolname = current_user').fetchone())\n"
        "    print(c.execute(\"SELECT count(*) > 10, bool_and(tableowner = current_user) FROM pg_tables WHERE schemaname = 'public'\").fetchone())\n"
        "    for trick in (\"SELECT pg_read_file('/etc/passwd')\", \"COPY (SELECT 1) TO PROGRAM 'true'\", 'CREATE ROLE other'):\n"
        "        try: c.execute(trick); print('done', trick)\n"
        "        except psycopg.errors.InsufficientPrivilege: print('refused')\n"
    )
    lines = deployment.inside("text", "python", "-c", script).stdout.splitlines()
    assert lines == ["(False, False, False, False, False)", "(True, True)", "refused", "refused", "refused"]


def test_the_nodes_storage_key_opens_three_buckets(deployment: Deployment, bucket: Minio) -> None:
    root = storage(deployment, "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD")
    root.make_bucket("others")
    assert all(bucket.bucket_exists(name) for name in BUCKETS)
    tries: list[Callable[[], Any]] = [
        lambda: bucket.make_bucket("mine"),
        lambda: bucket.remove_bucket("tmp"),
        lambda: list(bucket.list_objects("others")),
        lambda: bucket.fput_object("others", "x", __file__),
    ]
    for one in tries:
        with pytest.raises(S3Error, match="AccessDenied"):
            one()


def test_no_node_has_a_way_out_but_the_one_that_sends_webhooks(deployment: Deployment) -> None:
    script = "import socket\ntry: socket.create_connection(('1.1.1.1', 443), 3); print('out')\nexcept OSError: print('no way')"
    ways = {service: deployment.inside(service, "python", "-c", script).stdout.strip() for service in NODES}
    # Where these tests run there may be no network to go out to.
    assert ways.pop("housekeeping") in ("out", "no way")
    assert ways == dict.fromkeys(ways, "no way")


# --- settings


def test_every_documented_setting_reaches_every_node(
    images: Images, deployment: Deployment, tmp_path: Path
) -> None:
    """One .env with another value for each; a node's environment has them, and its settings accept them."""
    wanted = values.other_values()
    assert set(values.documented_settings()) == wanted.keys() | values.FIXED | values.ADMINISTRATION
    given = {**deployment.values, **wanted, "SCENEFLEET_IMAGE": images.ours}
    probe = Deployment(images.engine, tmp_path / "probe", given, deployment.project + "p")
    script = "import json, os; from shared.settings import load_settings; load_settings(); print(json.dumps(dict(os.environ)))"
    try:
        for service in NODES:
            done = probe.compose("run", "--rm", "--no-deps", "-T", service, "python", "-c", script)
            found = json.loads(done.stdout.strip().splitlines()[-1])
            # The secret of the sign-in is the API's alone.
            expected = wanted if service == "api" else {**wanted, "OIDC_CLIENT_SECRET": ""}
            assert {name: found.get(name) for name in wanted} == expected, service
            assert {found[name] for name in (*values.ADMINISTRATION, *values.ADMINISTRATORS)} == {""}, service
            fixed = SERVICES[service]["environment"]
            assert all(found[name] == fixed[name] for name in ("SCENEFLEET_HOME", "MODELS_DIR", "HF_HOME"))
    finally:
        probe.down()


# --- from outside


def test_the_dashboard_asks_for_a_password_and_listens_on_this_machine_only(deployment: Deployment) -> None:
    url = f"http://127.0.0.1:{deployment.values['FLOWER_PORT']}/api/workers"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=10)
    assert refused.value.code == 401
    user = f"{deployment.values['FLOWER_USER']}:{deployment.values['FLOWER_PASSWORD']}"
    login = {"Authorization": f"Basic {b64encode(user.encode()).decode()}"}
    request = urllib.request.Request(url, headers=login)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
    ports = deployment.engine.inspect(deployment.container("flower"))["HostConfig"]["PortBindings"]
    assert [binding["HostIp"] for bindings in ports.values() for binding in bindings] == ["127.0.0.1"]
    assert not deployment.engine.inspect(deployment.container("postgres"))["HostConfig"].get("PortBindings")


def test_a_video_is_indexed_and_found_by_a_bare_send_task(
    deployment: Deployment, stranger: Stranger, bucket: Minio, record_figure: RecordFigure
) -> None:
    began = time.monotonic()
    send(stranger, bucket, "demo")
    assert wait_for(stranger, "demo", *ENDED) == "indexed"
    record_figure("the sample was indexed in containers in", f"{time.monotonic() - began:.0f} s")
    truth = json.loads((ROOT / "samples" / "truth.json").read_text())
    for search in truth["searches"]:
        answer = stranger.ask("tasks.search.scenes", user_id=USER, query=search["query"], mode=search["mode"])
        assert "ok" in answer, answer
        assert answer["ok"]["hits"][0]["idx"] == search["scene"], answer
    # Links to keyframes are signed for the address that browsers use.
    link = answer["ok"]["hits"][0]["keyframe_urls"][0]
    assert link.startswith(f"http://localhost:{deployment.values['MINIO_PORT']}/")
    with urllib.request.urlopen(link, timeout=10) as picture:
        assert picture.read(3) == b"\xff\xd8\xff"


def test_the_api_asks_for_a_key_and_serves_the_page(deployment: Deployment) -> None:
    address = f"http://127.0.0.1:{deployment.values['API_PORT']}"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/api/v1/videos", timeout=10)
    assert refused.value.code == 401
    made = deployment.inside("search", "scenefleet", "keys", "add", "--user", USER, "--json")
    request = urllib.request.Request(f"{address}/api/v1/me")
    request.add_header("Authorization", f"Bearer {json.loads(made.stdout)['key']}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["user_id"] == USER
    with urllib.request.urlopen(f"{address}/", timeout=10) as page:
        assert b"<script" in page.read()


# --- faults


def test_processes_and_servers_die_and_the_video_is_indexed(
    deployment: Deployment, stranger: Stranger, bucket: Minio
) -> None:
    send(stranger, bucket, "hurt")
    engine = deployment.engine

    def started_at() -> str:
        return str(engine.inspect(deployment.container("media"))["State"]["StartedAt"])

    before = started_at()
    # Everything in the container but its init and the shell itself; Compose's restart policy brings it back.
    deployment.inside("media", "sh", "-c", "kill -KILL -1", check=False)
    eventually(lambda: started_at() != before, within_s=60, what="restart of media")
    for server in ("redis", "postgres"):
        engine.call("kill", "--signal", "KILL", deployment.container(server))
        eventually(partial(deployment.has_stopped, server), within_s=30, what=f"death of {server}")
        engine.call("start", deployment.container(server))
        deployment.wait_healthy([server], within_s=120)
    engine.call("restart", "--time", "30", deployment.container("text"), timeout_s=120)
    assert wait_for(stranger, "hurt", *ENDED) == "indexed"
    query = {"query": "a hot drink", "mode": "semantic", "video_id": "hurt"}
    answer = stranger.ask("tasks.search.scenes", user_id=USER, **query)
    assert answer["ok"]["hits"][0]["video_id"] == "hurt", answer


def test_every_service_stops_within_its_grace(
    deployment: Deployment, stranger: Stranger, bucket: Minio, record_figure: RecordFigure
) -> None:
    """With a video on its way, so that some node has a job to hand back. A process that had to be killed ends with 137."""
    send(stranger, bucket, "stopped")
    wait_for(stranger, "stopped", "processing", within_s=60)
    for service in ("flower", "api", *NODES, *reversed(SERVERS)):
        grace_s = int(SERVICES[service]["stop_grace_period"].removesuffix("s"))
        began = time.monotonic()
        command = ("stop", "--time", str(grace_s), deployment.container(service))
        deployment.engine.call(*command, timeout_s=grace_s + 60)
        took_s = time.monotonic() - began
        record_figure(f"{service} stopped in", f"{took_s:.1f} s of {grace_s}")
        state = deployment.engine.inspect(deployment.container(service))["State"]
        assert state["ExitCode"] != 137 and took_s < grace_s, (service, state)
