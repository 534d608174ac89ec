"""GPUs of a real node: each process is shown its own, and the one that replaces a killed process the same.

No GPU is needed: which one CUDA may see is decided before anything looks for it. `make test-gpu` goes on from there.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery
from celery.exceptions import TimeoutError as NoAnswer

from local.node import celery_command, node_environment
from shared.broker import broker_config
from tests.support.fleet import ROOT, Fleet, NodeProcess, eventually
from worker.models.placement import nvml

#: A task that tells what CUDA would be told in the process it runs in, and what that process must not have touched.
PROBE = """
import os, sys
from celery import shared_task

@shared_task(name="probe", ignore_result=False)
def probe():
    names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
    return {"pid": os.getpid(), "seen": [os.environ.get(name) for name in names]}
"""


@pytest.fixture
def devices() -> tuple[str, str]:
    """Two names that a node accepts: two of one GPU where there is a driver, any elsewhere."""
    gpus = nvml.list_gpus().gpus
    return (gpus[0].uuid, "0") if gpus else ("GPU-aaaaaaaa-0000-0000-0000-000000000000", "1")


@pytest.fixture
def node(fleet: Fleet, devices: tuple[str, str], tmp_path: Path) -> Iterator[NodeProcess]:
    """A text node with a process per device, started as `scenefleet node` does, and one more task."""
    (tmp_path / "probe.py").write_text(PROBE)
    environment = {**node_environment("text", devices), **fleet.process_environment(PYTHONPATH=str(tmp_path))}
    log = fleet.home / "logs" / "text.log"
    command = [*celery_command("text", "text", len(devices), "INFO"), "--include", "probe"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=sink, stderr=sink, start_new_session=True
        )
    started = NodeProcess("text", "text", process, log, len(devices), environment)
    fleet.nodes["text"] = started
    fleet.wait_ready("text", within_s=120)
    yield started
    fleet.stop("text")


def published(fleet: Fleet) -> dict[int, str]:
    """The GPU of each live process, by pid and in the order of slots, as the node says of itself."""
    slots: list[dict[str, Any]] = json.loads(fleet.node_states()["text"].get("slots", "[]"))
    return {slot["pid"]: slot["gpu"] for slot in slots if slot["state"] == "ready"}


def probe_each(fleet: Fleet, pids: set[int]) -> dict[int, list[str]]:
    """What each of these processes itself is told, asked until all have answered."""
    app = Celery("test", set_as_current=False)
    app.conf.update(broker_config(fleet.redis_url))
    told: dict[int, list[str]] = {}

    def ask() -> bool:
        sent = [app.send_task("probe", queue="text.online") for _ in range(4)]
        for result in sent:
            try:
                answer = result.get(timeout=10)
            except NoAnswer:
                continue
            finally:
                # Nothing to unsubscribe when the handle is collected, maybe after Redis has gone.
                result.backend = None
            told[answer["pid"]] = answer["seen"]
        return pids <= told.keys()

    eventually(ask, within_s=60, what=f"the processes {pids} have answered")
    return told


def test_each_process_sees_its_gpu_and_its_replacement_the_same(
    fleet: Fleet, node: NodeProcess, devices: tuple[str, str]
) -> None:
    def whole(dead: int = 0) -> dict[int, str]:
        found = published(fleet)
        return found if len(found) == len(devices) and dead not in found else {}

    before = eventually(whole, within_s=30, what="both processes say which GPU they have")
    assert tuple(before.values()) == devices
    told = probe_each(fleet, set(before))
    assert all(told[pid] == [device, "PCI_BUS_ID"] for pid, device in before.items())

    for slot, device in enumerate(devices):
        old = list(published(fleet))[slot]
        psutil.Process(old).kill()
        after = eventually(partial(whole, old), within_s=90, what=f"another process in place of {old}")
        assert tuple(after.values()) == devices
        new = list(after)[slot]
        assert new not in before
        assert probe_each(fleet, {new})[new] == [device, "PCI_BUS_ID"]
    assert node.process.poll() is None
