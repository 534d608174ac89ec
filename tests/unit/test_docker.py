"""The container files: valid by their schema and linter, safe by what they say, and in step with the code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from local.node import choose_devices, node_environment
from shared.routing import FAMILIES
from shared.settings import Settings
from tests.checkpoints import write_catalog
from tests.support.assets import give_up
from tests.support.fleet import eventually
from worker.models.catalog import load_catalog
from worker.models.spec import ModelSpec

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile.gpu").read_text()
ENV_EXAMPLE = (ROOT / ".env.example").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SERVERS = {"postgres", "redis", "minio"}
DASHBOARDS = {"flower", "grafana"}
#: What nodes get by.
NODE_SECRETS = {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "STORAGE_ACCESS_KEY", "STORAGE_SECRET_KEY"}
#: A secret that no node gets, of a server's administrator or the dashboard's user -> the services that it reaches.
HOLDERS = {
    "POSTGRES_SUPERUSER_PASSWORD": {"postgres", "bootstrap"},
    "MINIO_ROOT_USER": {"minio", "buckets"},
    "MINIO_ROOT_PASSWORD": {"minio", "buckets"},
    "FLOWER_USER": {"flower"},
    "FLOWER_PASSWORD": {"flower"},
}
SECRETS = NODE_SECRETS | HOLDERS.keys()
#: Environment of our containers that is not a setting of ours.
FOREIGN_ENVIRONMENT = {"FLOWER_BASIC_AUTH", "POSTGRES_PASSWORD", *HOLDERS}
#: Services that do something once and end.
ONE_SHOTS = {"bootstrap", "migrate", "buckets", "pull"}
#: Compose profile -> the nodes it runs, by service.
NODES_OF = {
    "cpu": {family: family for family in FAMILIES if family != "vision"},
    "full": {family: family for family in FAMILIES},
    "gpu": {f"{family}-gpu": family for family in FAMILIES},
}
#: Families whose model of the profile full uses a GPU.
ON_GPU = sorted({spec.family for spec in load_catalog().for_profile("full").values() if spec.device != "cpu"})
ALL_NODES = {**NODES_OF["full"], **NODES_OF["gpu"]}
#: Settings that Compose sets for every node, as it makes the servers and the volumes; .env can't.
OF_COMPOSE = {"POSTGRES_URL", "REDIS_URL", "SCENEFLEET_HOME", "MODELS_DIR", "HF_HOME"}
SETTINGS = {(field.alias or name).upper() for name, field in Settings.model_fields.items()}
#: Memory of a process besides its models: Python, the engine's libraries, a batch on its way (MB).
BESIDES_MODELS_MB = 900
#: What Celery needs beyond its soft shutdown to hand a job back and leave.
LEAVE_S = 15


def variables(text: str) -> dict[str, set[str]]:
    """Each `${NAME...}` that Docker Compose would fill in, and the forms it is used in (`:?`, `:-`, or plain)."""
    uses: dict[str, set[str]] = {}
    for name, form in re.findall(r"(?<!\$)\$\{(\w+)(:[?-])?", text):
        uses.setdefault(name, set()).add(form)
    return uses


@pytest.mark.parametrize(
    "command",
    ["check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml", "hadolint Dockerfile.gpu"],
)
def test_the_files_pass_their_linters(command: str) -> None:
    """The linters come with the extra `dev`, so that one is missing is a failure, too."""
    tool, *arguments = command.split()
    done = subprocess.run([TOOLS / tool, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


# --- secrets and what is reachable


def test_every_secret_must_be_set_by_the_user_and_none_is_written_down() -> None:
    uses = variables(COMPOSE_TEXT)
    assert {name for name, forms in uses.items() if forms == {":?"}} == SECRETS
    # What may be left out has a default, in every place.
    assert {name for name, forms in uses.items() if forms != {":-"}} == SECRETS
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|AUTH$|ACCESS_KEY|_URL$|^MC_HOST|_USER$", key) and value:
                assert "${" in str(value) or (name, key) == ("postgres", "POSTGRES_USER"), (name, key)


def test_a_node_gets_no_administrators_secret() -> None:
    """.env reaches nodes whole, so what they must not have is blanked, and named in no other variable of theirs."""
    for name, service in SERVICES.items():
        environment = service.get("environment", {})
        for secret, holders in HOLDERS.items():
            named = [key for key, value in environment.items() if "${" + secret in str(value)]
            assert bool(named) == (name in holders), (name, secret)
            if service.get("env_file"):
                assert environment[secret] == "", (name, secret)
        if service.get("env_file"):
            assert environment["POSTGRES_ADMIN_URL"] == "", name
            assert bool(environment["OIDC_CLIENT_SECRET"]) == (name == "api"), name
    with_file = {name for name, service in SERVICES.items() if service.get("env_file")}
    assert with_file == {*ALL_NODES, "migrate", "api", "exporter"}
    assert (
        SERVICES["api"]["environment"]["POSTGRES_URL"]
        == SERVICES["api"]["environment"]["POSTGRES_PASSWORD"]
        == ""
    )


def test_the_example_names_every_variable_and_sets_no_secret() -> None:
    pairs = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", ENV_EXAMPLE, re.M))
    uses = re.findall(r"(?<!\$)\$\{(\w+):-([^}]*)\}", COMPOSE_TEXT)
    used = variables(COMPOSE_TEXT).keys()
    assert used <= pairs.keys()
    # The others are settings, which reach the nodes as they stand.
    assert pairs.keys() - used - SETTINGS == {"COMPOSE_PROFILES"}
    assert all(name in ENV_EXAMPLE for name in OF_COMPOSE)
    set_lines = re.findall(r"^[A-Z_]+=.*$", ENV_EXAMPLE, re.M)
    assert sorted(set_lines) == sorted(["COMPOSE_PROFILES=cpu", *(f"{name}=" for name in SECRETS)])
    # TORCH_INDEX_URL shows what one would set.
    assert {name for name, default in uses if pairs[name] != default} == {"TORCH_INDEX_URL"}


def test_every_setting_reaches_the_nodes_from_one_file() -> None:
    for name in [*ALL_NODES, "migrate"]:
        assert SERVICES[name]["env_file"] == [{"path": ".env", "required": False}], name
    for name in ALL_NODES:
        own = {key for key, value in SERVICES[name]["environment"].items() if "${" + key not in str(value)}
        gpu = {"SCENEFLEET_PROFILE", "SCENEFLEET_GPUS"} if name.endswith("-gpu") else set()
        assert own & SETTINGS == OF_COMPOSE | {"POSTGRES_ADMIN_URL", "OIDC_CLIENT_SECRET"} | gpu, name


def test_only_what_others_need_is_published_and_to_this_machine_by_default() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"redis", "minio", "rabbitmq", "flower", "api", "grafana"}
    for name, ports in published.items():
        (port,) = ports
        # A page for administrators without TLS stays on this machine, whatever .env says.
        assert port.startswith("127.0.0.1:" if name in DASHBOARDS else "${PUBLISH_ADDRESS:-127.0.0.1}:")
    login = SERVICES["flower"]["environment"]["FLOWER_BASIC_AUTH"]
    assert re.search(r"FLOWER_USER:\?.*:\$\{FLOWER_PASSWORD:\?", login)


def test_nodes_have_no_way_out() -> None:
    assert COMPOSE["networks"]["servers"] == {"internal": True}
    senders = {name for name, service in SERVICES.items() if "outside" in service["networks"]}
    assert senders == {"housekeeping", "housekeeping-gpu"}
    assert all(SERVICES[name]["networks"] == ["servers", "outside"] for name in senders)
    outside = {name for name, service in SERVICES.items() if service["networks"] != ["servers"]}
    assert outside == {"redis", "minio", "rabbitmq", "flower", "pull", "api", "grafana", *senders}
    assert outside & ALL_NODES.keys() == senders
    # What can reach the internet fetches weights and has no password of ours.
    assert SERVICES["pull"]["networks"] == ["published"]
    assert not any(name in str(SERVICES["pull"]["environment"]) for name in SECRETS)


def test_no_container_has_more_rights_than_it_needs() -> None:
    for name, service in SERVICES.items():
        assert not {"privileged", "cap_add", "pid", "ipc", "network_mode", "devices"} & service.keys(), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        # Bounded: what lies there is memory.
        assert all(re.fullmatch(r"/[a-z/]+:size=\d+m,mode=1777", mount) for mount in service["tmpfs"]), name
        assert 0 < service["pids_limit"] <= 512 and megabytes(service["mem_limit"]) >= 512, name
        assert "memswap_limit" not in service, name
        # Nothing of the host.
        assert all(not re.match(r"[/.~][^:]*:", volume) for volume in service.get("volumes", [])), name


def megabytes(text: str) -> int:
    """A limit of memory, or the default of the variable that gives it."""
    ((number, unit),) = re.findall(r"^(?:\$\{\w+_MEMORY:-)?(\d+)([mg])b?\}?$", text)
    return int(number) * {"m": 1, "g": 1024}[unit]


@pytest.mark.parametrize("profile", ["lite", "full"])
def test_a_node_may_have_the_memory_its_models_need(profile: str) -> None:
    specs = load_catalog().for_profile(profile).values()
    for name, family in ALL_NODES.items():
        models_mb = sum(spec.memory_mb for spec in specs if spec.family == family)
        assert megabytes(SERVICES[name]["mem_limit"]) >= models_mb + BESIDES_MODELS_MB, name
    limit, holds = SERVICES["redis"]["mem_limit"], SERVICES["redis"]["environment"]["REDIS_MAXMEMORY"]
    assert megabytes(limit) >= 2 * megabytes(holds.replace("MAXMEMORY", "MEMORY"))


def test_the_nodes_database_user_is_not_the_servers() -> None:
    assert SERVICES["postgres"]["environment"]["POSTGRES_USER"] == "postgres"
    (url,) = {SERVICES[name]["environment"]["POSTGRES_URL"] for name in ALL_NODES}
    assert url.startswith("postgresql://scenefleet:${POSTGRES_PASSWORD:?")
    bootstrap = SERVICES["bootstrap"]["environment"]
    assert bootstrap["POSTGRES_URL"] == url
    assert bootstrap["POSTGRES_ADMIN_URL"].startswith("postgresql://postgres:${POSTGRES_SUPERUSER_PASSWORD:?")
    assert SERVICES["bootstrap"]["command"] == ["scenefleet", "db", "bootstrap"]


def test_the_nodes_storage_key_opens_their_buckets_only() -> None:
    environment, nodes = SERVICES["buckets"]["environment"], SERVICES["text"]["environment"]
    buckets = ["uploads", "sidecars", "tmp"]
    policy = json.loads(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", environment["POLICY"]))
    of_buckets, of_objects = policy["Statement"]
    assert of_buckets["Resource"] == [f"arn:aws:s3:::{name}" for name in buckets]
    assert of_objects["Resource"] == [f"arn:aws:s3:::{name}/*" for name in buckets]
    for statement in (of_buckets, of_objects):
        assert statement["Effect"] == "Allow"
        assert all(re.fullmatch(r"s3:[A-Z][A-Za-z]+", action) for action in statement["Action"])
        assert not any("Policy" in action or "Create" in action for action in statement["Action"])
    for name in buckets:
        setting = f"STORAGE_BUCKET_{name.upper()}"
        assert environment[f"{name.upper()}_BUCKET"] == nodes.get(setting, f"${{{setting}:-{name}}}")
    for key in ("ACCESS_KEY", "SECRET_KEY"):
        assert environment[key] == nodes[f"STORAGE_{key}"]


# --- servers


def default_image(service: dict[str, Any]) -> str:
    (image,) = re.findall(r"^\$\{[A-Z]+_IMAGE:-([^}]+)\}$", service["image"])
    return str(image)


def test_images_are_pinned_by_tag_and_can_be_pinned_by_digest() -> None:
    for name in (*SERVERS, "rabbitmq", "prometheus", "grafana"):
        # With the registry's name: what a short name stands for is for each machine to say.
        _host, _, tag = re.fullmatch(r"([a-z.]+)/([a-z/]+):(\S+)", default_image(SERVICES[name])).groups()  # type: ignore[union-attr]
        assert re.search(r"\d+\.\d+\.\d+|RELEASE\.\d{4}-\d\d-\d\d", tag), SERVICES[name]["image"]
    (default,) = re.findall(r"^ARG PYTHON_IMAGE=(.+)$", DOCKERFILE, re.M)
    assert re.fullmatch(r"docker\.io/library/python:3\.1[1-9]\.\d+-slim-[a-z]+", default)
    assert SERVICES["text"]["build"]["args"]["PYTHON_IMAGE"] == f"${{PYTHON_IMAGE:-{default}}}"
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"${PYTHON_IMAGE}"}


def test_redis_is_one_that_a_stranger_cannot_fill() -> None:
    """CVE-2025-21605 (output buffers of clients without a password) and CVE-2025-49844 (Lua) are mended in it."""
    ((name, version),) = re.findall(r"^docker\.io/(\w+)/\w+:([\d.]+)-", default_image(SERVICES["redis"]))
    assert name == "valkey" and tuple(map(int, version.split("."))) >= (8, 1, 4)


def test_data_of_servers_lies_on_named_volumes() -> None:
    mounted = {name: [volume.split(":") for volume in SERVICES[name]["volumes"]] for name in SERVERS}
    assert mounted == {
        "postgres": [["postgres-data", "/var/lib/postgresql"], ["/run/postgresql"]],
        "redis": [["redis-data", "/data"]],
        "minio": [["minio-data", "/data"]],
    }
    assert {"postgres-data", "redis-data", "minio-data"} <= COMPOSE["volumes"].keys()


def test_the_servers_log_no_values() -> None:
    """Neither of rows and statements nor of messages; what they are is measured on the embedded servers."""
    assert {"log_min_messages=log", "log_min_error_statement=panic", "log_error_verbosity=terse",
            "log_parameter_max_length_on_error=0"} <= set(SERVICES["postgres"]["command"])  # fmt: skip
    redis_script = SERVICES["redis"]["command"][2]
    assert "slowlog-log-slower-than -1" in redis_script and "crash-log-enabled no" in redis_script


@pytest.mark.slow
def test_redis_keeps_its_data_and_its_password(tmp_path: Path) -> None:
    """The very command of the compose file, run by the redis-server of this machine."""
    if shutil.which("redis-server") is None:
        give_up("redis-server is not installed: install it")
    shell, flag, script = SERVICES["redis"]["command"]
    address = tmp_path / "redis.sock"
    # What Compose does with it, and a private address instead of the container's.
    place = f"--dir {tmp_path} --port 0 --unixsocket {address}"
    script = script.replace("$$", "$").replace("--dir /data", place)
    environment = {**os.environ, "REDIS_PASSWORD": "open5esame", "REDIS_MAXMEMORY": "64mb"}
    process = subprocess.Popen([shell, flag, script], env=environment, stdout=subprocess.DEVNULL)
    try:
        eventually(address.exists, within_s=20, what="Redis listens", every_s=0.05)
        with redis.Redis.from_url(f"unix://{address}") as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        with redis.Redis.from_url(f"unix://:open5esame@{address}", decode_responses=True) as client:
            found = client.config_get("*")
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
        assert found.items() >= {**wanted, "maxmemory": str(64 * 2**20)}.items()
        limits = found["client-output-buffer-limit"].split()
        kinds = dict(zip(limits[::4], limits[1::4], strict=True))
        assert 0 < int(kinds["normal"]) <= 2**28 and 0 < int(kinds["pubsub"]) <= 2**28
        assert b"open5esame" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        # SIGTERM, as Docker sends it to the first process, reaches Redis: it leaves by itself and in order.
        process.terminate()
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()


# --- our services


@pytest.mark.parametrize("profile", [*NODES_OF, "none"])
def test_a_profile_runs_one_node_per_family(profile: str) -> None:
    nodes = NODES_OF.get(profile, {})
    others = {
        *SERVERS,
        "bootstrap",
        "migrate",
        "buckets",
        "flower",
        "api",
        *(["pull"] if profile == "gpu" else []),
    }
    running = {name for name, service in SERVICES.items() if profile in service.get("profiles", [profile])}
    assert running == {*others, *nodes}
    # Compose refuses the file otherwise.
    assert all(SERVICES[name].get("depends_on", {}).keys() <= running for name in running)
    for name, family in nodes.items():
        assert SERVICES[name]["command"] == ["scenefleet", "node", family]
        # It says yes when a node of the family in its container is `ready`: its models are loaded and warm.
        assert SERVICES[name]["healthcheck"]["test"] == ["CMD", "scenefleet", "node-health", family]


def test_everything_that_stays_up_is_watched_and_restarted() -> None:
    for name in SERVICES.keys() - ONE_SHOTS:
        assert SERVICES[name]["restart"] == "unless-stopped", name
        assert SERVICES[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
    for name in ONE_SHOTS:
        assert SERVICES[name]["healthcheck"] == {"disable": True}, name
        assert SERVICES[name]["restart"] != "unless-stopped", name


def test_order_of_start() -> None:
    healthy, done = {"condition": "service_healthy"}, {"condition": "service_completed_successfully"}
    assert SERVICES["migrate"]["command"] == ["alembic", "upgrade", "head"]
    assert SERVICES["bootstrap"]["depends_on"] == {"postgres": healthy}
    assert SERVICES["migrate"]["depends_on"] == {"bootstrap": done}
    assert SERVICES["buckets"]["depends_on"] == {"minio": healthy}
    ready = {"migrate": done, "buckets": done, "redis": healthy}
    for name, family in ALL_NODES.items():
        pulls = name in NODES_OF["gpu"] and family in ON_GPU
        assert SERVICES[name]["depends_on"] == (ready | {"pull": done} if pulls else ready), name


def test_a_node_has_time_to_hand_its_job_back() -> None:
    for name, family in ALL_NODES.items():
        text = SERVICES[name]["environment"]["SOFT_SHUTDOWN_S"]
        (soft_s,) = map(int, re.findall(r"^\$\{SOFT_SHUTDOWN_S:-(\d+)\}$", text))
        grace_s = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
        assert 0 < soft_s < grace_s - LEAVE_S
        # Docker sends SIGTERM, on which Celery would ignore its soft shutdown.
        assert node_environment(family)["REMAP_SIGTERM"] == "SIGQUIT"


def test_settings_in_the_compose_file_exist() -> None:
    for name in SERVICES.keys() - SERVERS - {"buckets", "rabbitmq", "prometheus", "grafana"}:
        assert SERVICES[name]["environment"].keys() - FOREIGN_ENVIRONMENT <= SETTINGS, name
    given = {
        key.lower(): re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value)
        for key, value in SERVICES["text"]["environment"].items()
        if key.startswith("STORAGE_") and ":?" not in value
    }
    settings = Settings(**given)
    assert (settings.storage_backend, settings.storage_endpoint) == ("minio", "minio:9000")


def test_gpus_go_to_the_nodes_whose_model_uses_one() -> None:
    with_gpu = [name for name, service in SERVICES.items() if "deploy" in service]
    assert sorted(with_gpu) == [f"{family}-gpu" for family in ON_GPU]
    for family in ON_GPU:
        service = SERVICES[f"{family}-gpu"]
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        ids = [f"${{{family.upper()}_GPU:-0}}"]
        assert device == {"driver": "nvidia", "capabilities": ["gpu"], "device_ids": ids}
        # The one device of its container; named, so that the node leaves where it is missing.
        assert choose_devices(family, None, gpus_of(service)) == ("0",)


def gpus_of(service: dict[str, Any]) -> tuple[str, ...]:
    return Settings(SCENEFLEET_GPUS=service["environment"].get("SCENEFLEET_GPUS", "")).gpu_list


def test_all_nodes_of_a_profile_plan_with_the_same_models() -> None:
    for profile, nodes in NODES_OF.items():
        (models,) = {SERVICES[name]["environment"]["SCENEFLEET_PROFILE"] for name in nodes}
        assert models == ("full" if profile == "gpu" else "${SCENEFLEET_PROFILE:-lite}")
    for name, family in ALL_NODES.items():
        if name not in NODES_OF["gpu"] or family not in ON_GPU:
            assert gpus_of(SERVICES[name]) == (), name


def test_the_pull_writes_where_the_nodes_read() -> None:
    pull = SERVICES["pull"]
    assert pull["volumes"] == ["models:/models", "/var/lib/scenefleet"]
    assert pull["environment"]["MODELS_DIR"] == "/models"
    for name in ALL_NODES:
        # The second is a volume of the container alone: where a job's files lie.
        assert SERVICES[name]["volumes"] == ["models:/models:ro", "/var/lib/scenefleet"], name
        assert SERVICES[name]["environment"]["MODELS_DIR"] == "/models"
        assert SERVICES[name]["environment"]["SCENEFLEET_HOME"] == "/var/lib/scenefleet"
    # It has no env_file, as it reaches the internet: what it needs of .env is named.
    assert pull["environment"]["ASR_MODEL"] == "${ASR_MODEL:-}"
    profile = SERVICES["asr-gpu"]["environment"]["SCENEFLEET_PROFILE"]
    assert profile == pull["environment"]["SCENEFLEET_PROFILE"]


def test_a_pull_that_lacks_something_says_so_and_lets_the_nodes_start(tmp_path: Path) -> None:
    """The very command of the compose file: nothing can be fetched, and a model's weights are the user's to supply."""
    supplied = ModelSpec(
        name="mine", family="face", kind="face", provider="adaface", source="user:", revision="1", licence="none",
        memory_mb=1, files=("supplied.ckpt",), profiles=("full",),
    )  # fmt: skip
    values = {name: value for name, value in SERVICES["pull"]["environment"].items() if "$" not in value}
    environment = {**os.environ, **values, "PATH": f"{TOOLS}:{os.environ['PATH']}"}
    environment |= dict.fromkeys(("MODELS_DIR", "SCENEFLEET_HOME"), str(tmp_path))
    environment["SCENEFLEET_MODELS_FILE"] = str(write_catalog(tmp_path / "models.yaml", [supplied]))
    command = SERVICES["pull"]["command"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert "supplied.ckpt" in done.stderr
    assert "docker compose run --rm pull" in done.stderr.splitlines()[-1]


# --- the image


def test_image_is_built_in_stages_and_runs_as_a_user_without_rights() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]
    assert len(stages) == 2
    users = re.findall(r"^USER (\d+):(\d+)$", stages[-1], re.M)
    assert users == [("10001", "10001")]
    assert "useradd --uid 10001" in stages[-1]
    assert re.search(r"^HEALTHCHECK .*", stages[-1], re.M)
    assert "pip install" not in stages[-1]
    installs = re.findall(r"pip install.*", stages[0])
    assert installs
    assert all("--constraint constraints.txt" in line for line in installs)
    # The engines of every profile.
    assert re.findall(r"^ARG EXTRAS=(\S+)$", DOCKERFILE, re.M) == ["lite,full,api,tracing"]
    assert "EXTRAS: ${SCENEFLEET_EXTRAS:-lite,full,api,tracing}" in COMPOSE_TEXT
    assert {"lite", "full", "api", "tracing"} <= PROJECT["project"]["optional-dependencies"].keys()


def test_the_context_holds_what_is_copied_and_the_wheel_needs_and_no_more() -> None:
    copied: set[str] = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M):
        *sources, _target = line.split()
        copied.update(sources)
    rules = re.findall(r"^[^#\n].*$", (ROOT / ".dockerignore").read_text(), re.M)
    assert rules[0] == "*" and "**/.env*" in rules
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert [name for name in sorted(copied) if not (ROOT / name).exists()] == []
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    readme = PROJECT["project"]["readme"]
    assert {*wheel["packages"], *wheel.get("force-include", {}), readme, "pyproject.toml"} <= copied
