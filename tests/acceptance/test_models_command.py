"""`scenefleet models` as people use it, against a stand-in hub: pull, be killed, go on, verify, load without a network."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.acceptance.commands import run_command
from tests.checkpoints import bge_m3, write_catalog
from tests.support.fleet import ROOT, eventually, kept_environment
from tests.support.hub_server import Fault, HubServer
from worker.models.cache import build
from worker.models.spec import ModelSpec
from worker.models.weights import lock
from worker.models.weights.pull import PARTIAL

LIMIT_S = 120
NAME, REPOSITORY, LARGE = "tiny-bge-m3", "tests/bge-m3", "pytorch_model.bin"
#: Where transfers are stopped: more than a chunk, less than the file.
AFTER_BYTES = 600_000
#: Loads a model by the catalogue and the lock, as a node does, and prints one vector.
LOAD = f"""
import json
from shared.settings import get_settings
from worker.models.catalog import configured_catalog
from worker.models.cache import build
settings = get_settings()
spec = configured_catalog(settings).get("{NAME}")
model = build(spec, threads=1, models_dir=settings.models_dir)
vectors = model.embed(["a hot drink"])
print(json.dumps([spec.revision, vectors[0].tolist()]))
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """The model where it was made; wide enough for a file of several chunks."""
    spec = bge_m3.build(tmp_path_factory.mktemp("made") / "model", hidden=128)
    return spec.model_copy(update={"dim": 128})


@pytest.fixture
def hub(original: ModelSpec) -> Iterator[HubServer]:
    folder = Path(original.source.removeprefix("path:"))
    with HubServer() as server:
        content = {file: (folder / file).read_bytes() for file in original.all_files}
        assert len(content[LARGE]) > 2 * AFTER_BYTES
        server.publish(REPOSITORY, {**content, "modeling.py": b"raise SystemExit('ran')"})
        yield server


class Machine:
    """A MODELS_DIR, a catalogue with the model on the hub, and the command; `stated`: the catalogue has its sums."""

    def __init__(self, folder: Path, spec: ModelSpec, hub: HubServer, *, stated: bool) -> None:
        folder.mkdir(exist_ok=True)
        self.models_dir = folder / "models"
        self.folder = self.models_dir / NAME
        original = Path(spec.source.removeprefix("path:"))
        sums = {file: hashlib.sha256((original / file).read_bytes()).hexdigest() for file in spec.all_files}
        on_hub = {"source": f"hub:{REPOSITORY}", "revision": "main", "files": spec.all_files}
        self.spec = spec.model_copy(update={**on_hub, "sha256": sums if stated else {}})
        self.catalogue = write_catalog(folder / "models.yaml", [self.spec])
        self.environment = {
            **kept_environment(),
            "SCENEFLEET_HOME": str(folder / "home"),
            "SCENEFLEET_PROFILE": "full",
            "SCENEFLEET_MODELS_FILE": str(self.catalogue),
            "MODELS_DIR": str(self.models_dir),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "hub-cache"),
        }

    def start(self, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cli", "models", *arguments]
        how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": stderr}
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, text=True, **how)

    def start_held(self, hub: HubServer) -> tuple[subprocess.Popen[str], Fault]:
        """A pull that stands still once a chunk of the large file is on the disk."""
        stop = hub.fail(Fault(LARGE, "hold", after_bytes=AFTER_BYTES))
        pulling = self.start("pull")
        assert stop.reached.wait(LIMIT_S)
        eventually(lambda: self.partial_bytes() > 0, within_s=LIMIT_S, what="a chunk is on the disk")
        return pulling, stop

    def run(self, *arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli", "models", *arguments]
        return run_command(command, {**self.environment, **environment}, status=status, timeout_s=LIMIT_S)

    def json(self, *arguments: str, status: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", status=status).stdout)

    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    def partial_bytes(self) -> int:
        part = self.folder / PARTIAL / f"{LARGE}.part"
        return part.stat().st_size if part.exists() else 0


@pytest.fixture
def machine(tmp_path: Path, original: ModelSpec, hub: HubServer) -> Machine:
    return Machine(tmp_path, original, hub, stated=True)


@pytest.fixture
def unstated(tmp_path: Path, original: ModelSpec, hub: HubServer) -> Machine:
    """One whose catalogue has no checksum of the model's files: what comes first must be trusted."""
    return Machine(tmp_path, original, hub, stated=False)


def test_a_pulled_model_loads_without_a_network(
    machine: Machine, hub: HubServer, original: ModelSpec
) -> None:
    done = machine.run("pull", "--profile", "full")
    assert done.stdout == "" and f"{NAME}: fetched 5 of 5 files" in done.stderr
    assert machine.files() == set(original.all_files)
    assert not (machine.models_dir.parent / "hub-cache").exists(), "nothing is kept twice"
    asked = len(hub.requests)
    offline = {**machine.environment, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    loaded = run_command([sys.executable, "-c", LOAD], offline, timeout_s=LIMIT_S)
    assert len(hub.requests) == asked
    revision, vector = json.loads(loaded.stdout.splitlines()[-1])
    assert revision == hub.branches[REPOSITORY, "main"]
    expected = build(original, threads=1).embed(["a hot drink"])[0]  # type: ignore[attr-defined]
    assert np.allclose(vector, expected, atol=1e-6)


def test_a_killed_pull_goes_on(machine: Machine, hub: HubServer, original: ModelSpec) -> None:
    pulling, stop = machine.start_held(hub)
    pulling.kill()
    pulling.communicate(timeout=LIMIT_S)
    stop.release.set()
    assert machine.files() & set(original.all_files) == set(), "no file has its name yet"
    assert lock.read(machine.models_dir) == {}
    done = machine.partial_bytes()
    machine.run("pull")
    first, second = hub.gets(LARGE)
    assert first.range == "" and second.range == f"bytes={done}-" and done > 0
    assert len(hub.gets("config.json")) == 1
    assert machine.files() == set(original.all_files)
    machine.run("verify")


def test_ctrl_c_stops_it_and_says_that_it_goes_on(machine: Machine, hub: HubServer) -> None:
    pulling, stop = machine.start_held(hub)
    pulling.send_signal(signal.SIGINT)
    _, said = pulling.communicate(timeout=LIMIT_S)
    assert pulling.returncode == 130
    assert said == "scenefleet: stopped; the next pull goes on from here\n"
    stop.release.set()
    machine.run("pull")
    assert [request.status for request in hub.gets(LARGE)] == [200, 206]


def test_two_pulls_at_once_fetch_everything_once(machine: Machine, hub: HubServer) -> None:
    first, stop = machine.start_held(hub)
    second = machine.start("pull")
    assert second.stderr is not None
    assert "another pull of it is running" in second.stderr.readline()
    stop.release.set()
    first.communicate(timeout=LIMIT_S)
    _, said = second.communicate(timeout=LIMIT_S)
    assert (first.returncode, second.returncode) == (0, 0)
    assert f"{NAME}: here, 5 of 5 files right" in said
    assert len(hub.gets(LARGE)) == 1 and len(hub.gets("config.json")) == 1


def test_a_bar_shows_bytes_and_rate_on_a_terminal(machine: Machine, hub: HubServer) -> None:
    stop = hub.fail(Fault(LARGE, "hold", after_bytes=2 * AFTER_BYTES))
    reader, terminal = pty.openpty()
    pulling = machine.start("pull", stderr=terminal)
    os.close(terminal)
    shown = ""
    while f"{LARGE} " not in shown or "MB" not in shown:
        shown += os.read(reader, 4096).decode(errors="replace")
    stop.release.set()
    while pulling.poll() is None or "fetched 5 of 5" not in shown:
        try:
            shown += os.read(reader, 4096).decode(errors="replace")
        except OSError:  # The other end of the terminal is closed.
            break
    os.close(reader)
    pulling.communicate(timeout=LIMIT_S)
    assert pulling.returncode == 0
    assert "fetched 5 of 5 files" in shown and "/s" in shown


def test_every_failure_is_one_sentence_and_the_others_are_tried(machine: Machine, hub: HubServer) -> None:
    hub.commits.clear()
    said = machine.run("pull", NAME, status=1).stderr
    assert said.count("\n") == 1 and said.startswith(f"scenefleet: Model {NAME} can't be pulled: ")
    done = machine.run("pull", NAME, "nonsense", status=1)
    assert done.stderr == f"scenefleet: There is no model 'nonsense' in models.yaml; it has {NAME}\n"
    assert "not both" in machine.run("pull", NAME, "--profile", "full", status=1).stderr
    (model,) = machine.json("pull", status=1)["models"]
    assert model["name"] == NAME and "has no repository" in model["error"] and model["files"] == []


def test_one_that_fails_does_not_keep_the_others_from_coming(machine: Machine, hub: HubServer) -> None:
    mine = ModelSpec.model_validate(
        {
            "name": "mine", "family": "face", "provider": "adaface", "source": "user:", "revision": "1", "dim": 4,
            "metric": "cosine", "licence": "research only", "memory_mb": 1, "files": ["mine.ckpt"], "profiles": ["full"],
        }
    )  # fmt: skip
    write_catalog(machine.catalogue, [mine, machine.spec])
    done = machine.run("pull", status=1)
    wanted = machine.models_dir / "mine"
    assert f"mine.ckpt is not downloaded, you supply it: put it into {wanted}" in done.stderr
    assert "licence: research only" in done.stderr and f"{NAME}: fetched 5 of 5" in done.stderr
    wanted.mkdir()
    (wanted / "mine.ckpt").write_bytes(b"weights")
    machine.run("pull")
    states = {row["name"]: row["here"] for row in machine.json("list")["models"]}
    assert states == {"mine": "supplied", NAME: "pulled"}


def test_offline_it_refuses_to_fetch(machine: Machine, hub: HubServer) -> None:
    done = machine.run("pull", status=1, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE=1 forbids it: unset it to pull" in done.stderr and hub.requests == []


def test_what_nobody_states_comes_only_when_it_is_trusted(unstated: Machine, hub: HubServer) -> None:
    refused = unstated.run("pull", status=1).stderr
    for file in unstated.spec.all_files:
        sha256 = hashlib.sha256(hub.commits[REPOSITORY][hub.branches[REPOSITORY, "main"]][file]).hexdigest()
        (shown,) = [line for line in refused.splitlines() if line.startswith(f"  {file} ")]
        assert f"sha256 {sha256}" in shown and f"commit {hub.branches[REPOSITORY, 'main']}" in shown
        assert f"from {hub.url}/{REPOSITORY}/" in shown
    assert refused.splitlines()[-1].endswith(f"accept it by `scenefleet models pull {NAME} --trust`")
    assert unstated.files() & set(unstated.spec.all_files) == set() and lock.read(unstated.models_dir) == {}
    # What was shown is not fetched again, and from then on it is what the others are held to.
    unstated.run("pull", "--trust")
    assert unstated.files() == set(unstated.spec.all_files)
    assert [request.status for request in hub.gets(LARGE)] == [200]
    unstated.run("pull")


def test_verify_tells_right_from_wrong_missing_and_unknown(unstated: Machine, hub: HubServer) -> None:
    def states(status: int) -> dict[str, str]:
        return {row["file"]: row["state"] for row in unstated.json("verify", status=status)["files"]}

    assert set(states(1).values()) == {"missing"}
    unstated.run("pull", "--trust")
    assert set(states(0).values()) == {"ok"}
    (unstated.folder / "config.json").write_bytes(b"wrong")
    (unstated.folder / "tokenizer.json").unlink()
    with lock.changing(unstated.models_dir) as entries:
        known = dict(entries[NAME].files)
        expected = known["config.json"].sha256
        del known["sparse_linear.pt"]
        entries[NAME] = lock.Entry(revision=entries[NAME].revision, files=known)
    found = states(1)
    assert found.pop(LARGE) == "ok"
    assert found == {
        "config.json": "wrong", "tokenizer.json": "missing", "sparse_linear.pt": "no checksum", "colbert_linear.pt": "ok",
    }  # fmt: skip
    shown = unstated.run("verify", status=1).stdout
    wrong = hashlib.sha256(b"wrong").hexdigest()
    assert (
        f"{unstated.folder / 'config.json'} ({NAME}): models.lock expects sha256 {expected}, found {wrong}"
        in shown
    )
    refused = unstated.run("pull", status=1).stderr
    assert "no sha256 is stated for sparse_linear.pt" in refused and "more file" not in refused
    unstated.run("pull", "--trust")
    assert set(states(0).values()) == {"ok"}


def test_list_and_info_tell_where_a_model_stands(unstated: Machine, hub: HubServer) -> None:
    (row,) = unstated.json("list")["models"]
    assert (row["name"], row["kind"], row["here"], row["active"]) == (NAME, "text", "missing", True)
    unstated.run("pull", "--trust")
    assert unstated.json("list")["models"][0]["here"] == "pulled"
    assert NAME in unstated.run("list").stdout
    info = unstated.json("info", NAME)
    assert info["revision"] == "main" and info["pulled_revision"] == hub.branches[REPOSITORY, "main"]
    file = next(file for file in info["files"] if file["file"] == LARGE)
    content = (unstated.folder / LARGE).read_bytes()
    assert file["path"] == str(unstated.folder / LARGE) and file["bytes"] == len(content)
    assert (file["expected"], file["expected_by"]) == (hashlib.sha256(content).hexdigest(), "models.lock")
    shown = unstated.run("info", NAME).stdout
    assert file["expected"] in shown and str(unstated.folder) in shown
    assert "no model 'other'" in unstated.run("info", "other", status=1).stderr


def test_another_file_of_a_name_is_refused_until_it_is_accepted(unstated: Machine, hub: HubServer) -> None:
    unstated.run("pull", "--trust")
    commit = hub.branches[REPOSITORY, "main"]
    (unstated.folder / "config.json").unlink()
    hub.commits[REPOSITORY][commit]["config.json"] = new = b'{"changed": true}'
    done = unstated.run("pull", status=1)
    assert "config.json is not the file models.lock means: expected sha256" in done.stderr
    assert f"found {hashlib.sha256(new).hexdigest()}" in done.stderr and "--update" in done.stderr
    assert not (unstated.folder / "config.json").exists()
    unstated.run("pull", "--update")
    assert (unstated.folder / "config.json").read_bytes() == new
