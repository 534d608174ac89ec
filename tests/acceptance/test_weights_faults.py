"""Wrong, truncated, mismatched or missing weights: the node says so and leaves; nothing else stops and nothing is lost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from safetensors.numpy import save_file

from local.fleet import last_error
from shared.exit_status import ExitStatus
from tests.acceptance.conftest import MakeFleet
from tests.support.catalogs import OwnCatalog, own_catalog
from tests.support.excerpt import write_excerpt
from tests.support.fleet import Fleet, eventually

pytestmark = pytest.mark.timeout(600)

TEXT, FACE = "all-minilm-l6-v2", "dlib-resnet-v1"


@pytest.fixture(scope="module")
def clip(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "excerpt.mp4"
    write_excerpt(sample, path)
    return path


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnCatalog]:
    with own_catalog(tmp_path_factory.mktemp("weights"), TEXT, FACE) as made:
        yield made


@pytest.fixture(scope="module")
def fleet(catalog: OwnCatalog, make_fleet: MakeFleet) -> Fleet:
    """Media, asr, ocr, search and face; a test starts text as it needs it."""
    made = make_fleet(SCENEFLEET_LOG_FORMAT="json", SCENEFLEET_MODELS_FILE=str(catalog.path))
    made.start("media", "asr", "ocr", "housekeeping", "search", "face")
    made.wait_ready()
    return made


def waiting(fleet: Fleet, queue: str) -> int:
    with redis.Redis.from_url(fleet.redis_url) as client:
        return client.llen(queue)


def jobs(fleet: Fleet, video_id: str, queue: str) -> list[tuple[str, int, int]]:
    rows = fleet.of_video("jobs", video_id, f"queue = '{queue}'")
    return [(row["state"], row["attempt"], row["failures"]) for row in rows]


def send_until_only_one_queue_waits(fleet: Fleet, clip: Path, video_id: str, queue: str) -> None:
    """Every other stage of the video gets done by the other nodes."""
    fleet.process(clip, video_id)

    def others_done() -> bool:
        rows = fleet.of_video("jobs", video_id)
        return (
            {row["stage"] for row in rows} >= {"split", "asr", "text", "face", "ocr"}
            and {row["state"] for row in rows if row["queue"] == queue} == {"queued"}
            and {row["state"] for row in rows if row["queue"] not in (queue, "media")} <= {"done", "skipped"}
            # Wake-up messages are sent after the commit that shows the job.
            and waiting(fleet, queue) >= 1
        )

    eventually(others_done, within_s=120, what=f"all of {video_id} but {queue} is done")


def leaves_with_one_sentence(fleet: Fleet, node: str) -> str:
    """Wait until the node has left; returns what it said."""
    process = fleet.nodes[node].process
    assert process.wait(timeout=90) == ExitStatus.CONFIG, fleet.log(node)[-3000:]
    assert "Traceback" not in fleet.log(node)
    lines = [json.loads(line) for line in fleet.log(node).splitlines() if line.startswith("{")]
    (said,) = [line["failure"] for line in lines if line.get("failure")]
    # What `up` shows, when it finds the process gone.
    assert last_error(fleet.home / "logs" / f"{node}.log") == said
    assert "\n" not in said
    return str(said)


def freeze_a_child(fleet: Fleet, node: str) -> None:
    started = fleet.nodes[node]
    eventually(lambda: len(started.children) == 2, within_s=60, what="both processes started", every_s=0.02)
    started.children[0].suspend()


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


Damage = Callable[[OwnCatalog, Path], tuple[str, ...]]


def change_a_byte(catalog: OwnCatalog, file: Path) -> tuple[str, ...]:
    expected, whole = sha256_of(file), bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    return expected, sha256_of(file)


def cut_in_half(catalog: OwnCatalog, file: Path) -> tuple[str, ...]:
    expected = sha256_of(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return expected, sha256_of(file)


def remove(catalog: OwnCatalog, file: Path) -> tuple[str, ...]:
    file.unlink()
    return "found no such file", "expected "


def write_another_network(catalog: OwnCatalog, file: Path) -> tuple[str, ...]:
    """Right sum, whole file, and not this model's tensors."""
    save_file({"embeddings.word_embeddings.weight": np.zeros((30522, 32), np.float32)}, file)
    catalog.change(TEXT, sha256={**catalog.specs[TEXT].sha256, file.name: sha256_of(file)})
    return "embeddings.word_embeddings.weight [30522, 384]", "[30522, 32]"


DAMAGES: dict[str, tuple[tuple[str, Damage], ...]] = {
    "text": (
        ("tokenizer.json", change_a_byte),
        ("model.safetensors", cut_in_half),
        ("model.safetensors", write_another_network),
        ("config.json", remove),
    ),
    "face": (("models/shape_predictor_5_face_landmarks.dat", cut_in_half),),
}


@pytest.mark.parametrize("family", DAMAGES)
def test_damaged_weights_stop_their_node_and_nothing_else(
    fleet: Fleet, catalog: OwnCatalog, clip: Path, family: str
) -> None:
    """One damage after the other, while a video's job waits in the queue; then the weights are whole again."""
    name, video_id = TEXT if family == "text" else FACE, f"video-{family}"
    if family == "face":
        fleet.stop("face")
        fleet.start("text")
        fleet.wait_ready("text")
    send_until_only_one_queue_waits(fleet, clip, video_id, family)
    before, queued = waiting(fleet, family), jobs(fleet, video_id, family)
    assert before >= 1 and set(queued) == {("queued", 0, 0)}
    for file, damage in DAMAGES[family]:
        path, node = catalog.folders[name] / file, f"{family}-{damage.__name__}"
        whole = path.read_bytes()
        try:
            said_of = damage(catalog, path)
            if damage is write_another_network:
                # Nor does a process that hangs while it loads hold up the exit.
                fleet.start(family, name=node, concurrency=2)
                freeze_a_child(fleet, node)
            else:
                fleet.start(family, name=node)
            said = leaves_with_one_sentence(fleet, node)
        finally:
            path.write_bytes(whole)
            catalog.change(name)
        assert str(path) in said and all(part in said for part in said_of), said
        assert (waiting(fleet, family), jobs(fleet, video_id, family)) == (before, queued)
        last = fleet.nodes.pop(node)
        fleet.wait_ready(within_s=30)
    fleet.nodes[node] = last
    fleet.restart(node)
    fleet.wait_ready(node)
    fleet.wait_for(video_id)
    fleet.stop(node)
    if family == "face":
        fleet.stop("text")
        fleet.start("face")


def test_a_damaged_lock_stops_the_nodes_that_read_it(fleet: Fleet, clip: Path, tmp_path: Path) -> None:
    lock = tmp_path / "models.lock"
    lock.write_text('{"version": 1, "models": {"bge-m3": ')
    fleet.start("text", MODELS_DIR=str(tmp_path))
    fleet.start("media", name="media-too", MODELS_DIR=str(tmp_path))
    for node in ("text", "media-too"):
        said = leaves_with_one_sentence(fleet, node)
        assert f"{lock} is damaged" in said and "restore it" in said
    fleet.process(clip, "lock")
    eventually(lambda: jobs(fleet, "lock", "text") == [("queued", 0, 0)], within_s=90, what="text has work")
    lock.unlink()
    for node in ("text", "media-too"):
        fleet.restart(node)
    fleet.wait_ready()
    fleet.wait_for("lock")
    fleet.stop("text", "media-too")


def test_weights_that_go_under_a_running_node_fail_no_job(
    fleet: Fleet, catalog: OwnCatalog, clip: Path
) -> None:
    """The model was let go of; when the next job needs it, its file is gone. That job is not to blame."""
    path = catalog.folders[TEXT] / "model.safetensors"
    aside = path.with_suffix(".aside")
    fleet.start("text", name="text-under")
    fleet.wait_ready()
    status = fleet.command("models", "unload", TEXT, "--node", "text-under")
    assert status.returncode == 0, status.stderr
    path.rename(aside)
    fleet.process(clip, "under")
    assert fleet.nodes["text-under"].process.wait(timeout=90) == ExitStatus.CONFIG
    waits = "queue = 'text' AND state = 'queued'"
    eventually(lambda: fleet.of_video("jobs", "under", waits), within_s=60, what="the job waits again")
    aside.rename(path)
    fleet.restart("text-under")
    fleet.wait_for("under")
    fleet.stop("text-under")


def test_a_budget_too_small_for_the_active_model_ends_the_node(fleet: Fleet) -> None:
    fleet.start("text", name="text-poor", WORKER_MODEL_MEMORY_MB="400")
    said = leaves_with_one_sentence(fleet, "text-poor")
    assert f"Model {TEXT} needs 410 MB, more than the whole budget of 400 MB (0 MB used)" in said
    assert "raise WORKER_MODEL_MEMORY_MB" in said
    fleet.stop("text-poor")
