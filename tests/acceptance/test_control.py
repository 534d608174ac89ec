"""The models of running nodes, seen and changed from outside: `celery inspect|control` and `scenefleet models ...`."""

from __future__ import annotations

import json
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cli.models.control import Remote
from tests.acceptance.commands import run_command
from tests.acceptance.conftest import MakeFleet
from tests.support.catalogs import OwnCatalog, own_catalog
from tests.support.excerpt import write_excerpt
from tests.support.fleet import Fleet, eventually
from worker.models.catalog import load_catalog

pytestmark = pytest.mark.timeout(600)

ACTIVE, SECOND, BROKEN, LARGE = "all-minilm-l6-v2", "second-minilm", "broken-minilm", "large-minilm"
ASR = "pocketsphinx-en-us"
#: Room for one text model.
BUDGET_MB = 500


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnCatalog]:
    """The lite models and three more text models, none of them active."""
    minilm = load_catalog().get(ACTIVE)
    second = minilm.model_copy(update={"name": SECOND, "profiles": ()})
    broken = second.model_copy(update={"name": BROKEN, "sha256": {**minilm.sha256, "config.json": "0" * 64}})
    large = second.model_copy(update={"name": LARGE, "memory_mb": 9000})
    with own_catalog(tmp_path_factory.mktemp("models"), second=second, broken=broken, large=large) as made:
        yield made


@pytest.fixture(scope="module")
def fleet(catalog: OwnCatalog, make_fleet: MakeFleet) -> Fleet:
    """Every node of profile lite but face and ocr; a text process holds one model at a time."""
    made = make_fleet(SCENEFLEET_MODELS_FILE=str(catalog.path), FEATURE_FACE="0", FEATURE_OCR="0")
    made.start("media", "asr", "housekeeping", "search")
    made.start("text", WORKER_MODEL_MEMORY_MB=str(BUDGET_MB), METRICS_PORT="0")
    made.wait_ready()
    return made


def celery(fleet: Fleet, *arguments: str) -> str:
    """Run `celery -A worker.app ...` as an operator would; returns what it wrote."""
    command = [sys.executable, "-m", "celery", "-A", "worker.app", *arguments]
    return run_command(command, fleet.process_environment()).stdout


def answers(fleet: Fleet, *arguments: str) -> dict[str, Any]:
    """The answers to a remote command with ``--json``, by the node's name before the `@`."""
    found = json.loads(celery(fleet, *arguments, "--json", "--timeout", "5"))
    replies = found if isinstance(found, list) else [found]
    return {name.partition("@")[0]: answer for reply in replies for name, answer in reply.items()}


def describe(fleet: Fleet, node: str) -> dict[str, Any]:
    """A node, as its main process describes it now."""
    remote = Remote(fleet.redis_url)
    (name,) = [name for name in remote.nodes() if name.startswith(f"{node}@")]
    return remote.describe([name])[name]


def slot_of(fleet: Fleet, node: str) -> dict[str, Any]:
    """The one process of a node."""
    (slot,) = describe(fleet, node)["slots"]
    return dict(slot)


def is_ready(fleet: Fleet, node: str) -> bool:
    """Whether a node and its process are ready now. What Redis says may still be the word of a process that has died."""
    described = describe(fleet, node)
    return described["state"] == "ready" and all(slot["state"] == "ready" for slot in described["slots"])


def evictions(fleet: Fleet) -> float:
    """The metric of the text node, as Prometheus reads it."""
    address = json.loads(fleet.node_states()["text"]["telemetry"])["metrics"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        (family,) = (
            family
            for family in text_string_to_metric_families(answer.read().decode())
            if family.name == "scenefleet_model_evictions"
        )
    return float(family.samples[0].value)


def held(slot: dict[str, Any]) -> set[str]:
    return {model["name"] for model in slot["models"] if model["loaded"]}


def wait_command(fleet: Fleet, state: str) -> None:
    def reached() -> bool:
        return bool(slot_of(fleet, "text")["command"]["state"] == state)

    eventually(reached, within_s=60, what=f"the command is {state}")


def models_json(fleet: Fleet, *arguments: str, status: int = 0) -> Any:
    done = fleet.command("models", *arguments, "--json")
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)


def search(fleet: Fleet) -> None:
    """A request that needs the active text model: vectors of earlier queries are kept."""
    assert fleet.client.search("u1", f"a hot drink {uuid4().hex}", mode="semantic").model in (ACTIVE, None)


def settle(fleet: Fleet) -> dict[str, Any]:
    """Bring the text node to where only the active model is loaded; returns its slot."""
    search(fleet)
    slot = slot_of(fleet, "text")
    assert held(slot) == {ACTIVE}
    return slot


def test_celery_knows_the_commands_without_a_node(fleet: Fleet) -> None:
    assert "models" in celery(fleet, "inspect", "--list")
    listed = celery(fleet, "control", "--list")
    assert all(f"{verb}_model <model>" in listed for verb in ("load", "unload", "warmup"))


def test_every_node_says_how_its_models_are(fleet: Fleet) -> None:
    settle(fleet)
    # A use is published within a second.
    eventually(
        lambda: any(model.get("last_used") for model in slot_of(fleet, "text")["models"]),
        within_s=30,
        what="the use of the text model is published",
    )
    said = {name: answer["ok"] for name, answer in answers(fleet, "inspect", "models").items()}
    assert set(said) == {"media", "asr", "text", "housekeeping", "search"}
    for node in ("media", "search"):
        (slot,) = said[node]["slots"]
        assert (said[node]["state"], slot["models"], slot["state"]) == ("ready", [], "ready")
    (slot,) = said["text"]["slots"]
    (model,) = [model for model in slot["models"] if model.get("name") == ACTIVE]
    assert model["loaded"] and model["loads"] >= 1 and model["active"] and model["device"] == "cpu"
    assert model["load_s"] > 0 and model["memory_bytes"] > 10 << 20 and model["last_used"] > 1.7e9
    assert slot["gpu"] is None and slot["pid"] in {child.pid for child in fleet.nodes["text"].children}
    (unavailable,) = [model for model in slot["models"] if "unavailable" in model]
    assert unavailable["kind"] == "rerank"


def test_a_load_evicts_the_least_recently_used_and_the_next_job_brings_it_back(fleet: Fleet) -> None:
    before = settle(fleet)
    evicted = evictions(fleet)
    replies = answers(fleet, "control", "load_model", SECOND)
    assert "serves asr" in replies["asr"]["error"] and "serves media" in replies["media"]["error"]
    number = replies["text"]["ok"]["command"]
    wait_command(fleet, "done")
    slot = slot_of(fleet, "text")
    assert (slot["command"]["id"], slot["command"]["verb"]) == (number, "load")
    assert held(slot) == {SECOND} and slot["evictions"] == before["evictions"] + 1
    search(fleet)
    after = slot_of(fleet, "text")
    assert held(after) == {ACTIVE} and after["evictions"] == before["evictions"] + 2
    assert after["loads"][ACTIVE] == before["loads"][ACTIVE] + 1
    assert evictions(fleet) == evicted + 2
    assert (after["pid"], after["children"]) == (before["pid"], before["children"]), "nothing was restarted"
    log = fleet.log("text")
    assert all(event in log for event in ("model loaded", "model evicted", "command given", "command done"))


def test_the_command_loads_warms_and_unloads(fleet: Fleet) -> None:
    settle(fleet)
    document = models_json(fleet, "warmup", SECOND)
    assert (document["command"], document["model"]) == ("warmup", SECOND)
    (outcome,) = document["outcomes"]
    assert (outcome["state"], outcome["slot"], outcome["error"]) == ("done", 0, "")
    assert outcome["seconds"] > 0 and outcome["model"]["loaded"] and outcome["model"]["warm_up_s"] > 0
    shown = fleet.command("models", "unload", SECOND, "--node", "text")
    assert shown.returncode == 0, shown.stderr
    assert "done" in shown.stdout and "not loaded" in shown.stdout
    assert held(slot_of(fleet, "text")) == set()
    nodes = models_json(fleet, "status")["nodes"]
    (name,) = [node["node"] for node in nodes if node["family"] == "text"]
    document = models_json(fleet, "load", SECOND, "--node", name)
    assert document["outcomes"][0]["model"]["warm_up_s"] is None
    search(fleet)
    assert held(slot_of(fleet, "text")) == {ACTIVE}


def test_the_status_of_all_nodes_as_a_table(fleet: Fleet) -> None:
    # The one that is evicted then stays in the table as not loaded.
    models_json(fleet, "load", SECOND)
    settle(fleet)
    shown = fleet.command("models", "status")
    assert shown.returncode == 0, shown.stderr
    for word in (ACTIVE, ASR, "text@", "media@", "MiB", "not loaded", "(rerank) none in profile"):
        assert word in " ".join(shown.stdout.split()), word
    (only,) = models_json(fleet, "status", "--node", "asr")["nodes"]
    assert only["family"] == "asr"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("load", "no-such-model"), "There is no model 'no-such-model' in models.yaml"),
        (("load", ACTIVE, "--node", "asr"), f"Model {ACTIVE} belongs to family text; node asr@"),
        (("load", ACTIVE, "--node", "nowhere"), "there is no node 'nowhere'; there are asr@"),
        (("load", "dlib-resnet-v1"), "no face node gave a sign of life"),
        (("load", BROKEN), "config.json should have sha256 " + "0" * 64),
        (("warmup", LARGE), f"needs 9000 MB, more than the whole budget of {BUDGET_MB} MB"),
        (("status", "--node", "nowhere"), "there is no node 'nowhere'"),
    ],
)
def test_what_fails_is_said_in_a_sentence(fleet: Fleet, arguments: tuple[str, ...], sentence: str) -> None:
    """And the node works on."""
    before = slot_of(fleet, "text")
    failed = fleet.command("models", *arguments)
    last = failed.stderr.strip().splitlines()[-1]
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert last.startswith("scenefleet: ") and sentence in last, failed.stderr
    search(fleet)
    assert slot_of(fleet, "text")["pid"] == before["pid"]


def test_a_failed_load_is_shown_with_its_reason(fleet: Fleet) -> None:
    (outcome,) = models_json(fleet, "load", BROKEN, status=1)["outcomes"]
    assert outcome["state"] == "failed" and "config.json" in outcome["error"]
    slot = slot_of(fleet, "text")
    (model,) = [model for model in slot["models"] if model.get("name") == BROKEN]
    assert not model["loaded"] and "config.json" in model["error"]
    assert slot["command"]["state"] == "failed" and "config.json" in slot["command"]["error"]
    assert "command failed" in fleet.log("text")


def test_an_order_during_a_job_waits_for_it_and_takes_nothing_from_it(
    fleet: Fleet, sample: Path, tmp_path: Path
) -> None:
    before = slot_of(fleet, "asr")
    write_excerpt(sample, tmp_path / "during.mp4", sound=(0, 26))
    fleet.process(tmp_path / "during.mp4", "during")

    where = "stage = 'asr' AND part >= 0 AND state = 'running'"
    eventually(
        lambda: fleet.of_video("jobs", "during", where), within_s=120, what="asr works on it", every_s=0.05
    )
    for verb in ("unload", "warmup", "unload"):
        assert models_json(fleet, verb, ASR)["outcomes"][0]["state"] == "done"
    fleet.wait_for("during", within_s=300)
    rows = fleet.of_video("jobs", "during", "queue = 'asr'")
    assert rows and all((row["attempt"], row["failures"], row["outages"]) == (1, 0, 0) for row in rows)
    after = slot_of(fleet, "asr")
    assert after["pid"] == before["pid"] and after["loads"][ASR] > before["loads"][ASR]


def test_an_order_to_a_process_that_dies_is_lost_and_only_one_is_taken_at_a_time(fleet: Fleet) -> None:
    settle(fleet)
    (child,) = fleet.nodes["text"].children
    child.send_signal(signal.SIGSTOP)
    late = fleet.command("models", "unload", ACTIVE, "--timeout", "1")
    assert late.returncode == 1 and "is not done after 1 s and goes on" in late.stderr
    assert slot_of(fleet, "text")["command"]["state"] == "waiting"
    refused = fleet.command("models", "load", SECOND)
    assert refused.returncode == 1 and f"busy with `unload {ACTIVE}`" in refused.stderr
    child.kill()
    wait_command(fleet, "lost")
    eventually(lambda: is_ready(fleet, "text"), within_s=120, what="the process after it is ready")
    slot = slot_of(fleet, "text")
    assert slot["children"] >= 2 and held(slot) == {ACTIVE}
    assert models_json(fleet, "unload", ACTIVE)["outcomes"][0]["state"] == "done"
    search(fleet)


def test_what_redis_says_agrees(fleet: Fleet) -> None:
    models_json(fleet, "load", SECOND)
    told = slot_of(fleet, "text")

    def agrees() -> bool:
        fields = fleet.node_states()["text"]
        (slot,) = json.loads(fields["slots"])
        same = all(slot[name] == told[name] for name in ("command", "loads", "evictions"))
        return same and json.loads(fields["loads"]) == told["loads"]

    eventually(agrees, within_s=10, what="the published state shows the command")
    search(fleet)
