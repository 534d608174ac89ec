"""A GPU that was asked for and can't be had: the node says so and leaves with 78; nothing is computed on a CPU instead."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import redis
import torch
from celery import Celery
from kombu import Queue

from shared import routing
from shared.broker import broker_config
from shared.exit_status import ExitStatus
from tests.acceptance.commands import run_command
from tests.acceptance.test_cli import Machine
from tests.checkpoints import bge_m3, write_catalog
from tests.support.fleet import Fleet
from worker.models.placement import nvml

#: Past every machine's last GPU.
ABSENT = "99"
MODELS = ("SCENEFLEET_PROFILE", "SCENEFLEET_MODELS_FILE")


@pytest.fixture
def environment(fleet: Fleet, tmp_path: Path) -> dict[str, str]:
    """Of a fleet whose text model computes on a GPU if there is one."""
    spec = bge_m3.build(tmp_path / "weights").model_copy(update={"device": "auto"})
    catalog = write_catalog(tmp_path / "models.yaml", [spec])
    models = dict(zip(MODELS, ("full", str(catalog)), strict=True))
    return {**fleet.process_environment(), **models, "SCENEFLEET_LOG_FORMAT": "json"}


def send_two(fleet: Fleet) -> None:
    """A request and a wake-up message, which wait in the family's queues."""
    app = Celery("test", set_as_current=False)
    queues = [Queue(name) for name in (routing.REQUESTS, "text.online", "text")]
    app.conf.update(broker_config(fleet.redis_url), task_ignore_result=True, task_queues=queues)
    app.send_task(routing.TEXT_EMBED, kwargs={"texts": ["hello"]}, queue="text.online")
    app.send_task(routing.wake_up_task("text"), kwargs={"job_id": 1}, queue="text")


def waiting(fleet: Fleet) -> dict[str, int]:
    with redis.Redis.from_url(fleet.redis_url) as client:
        assert client.hlen("unacked") == 0
        return {queue: client.llen(queue) for queue in ("text.online", "text")}


def test_a_node_told_a_gpu_that_is_not_there_leaves_and_takes_no_message(
    fleet: Fleet, environment: dict[str, str]
) -> None:
    send_two(fleet)
    command = [sys.executable, "-m", "cli", "node", "text", "--gpu", ABSENT]
    done = run_command(command, environment, status=ExitStatus.CONFIG, timeout_s=150)
    told = done.stdout + done.stderr
    survey = nvml.list_gpus()
    if survey.problem:
        said = [f"finds no usable GPU for SCENEFLEET_GPUS={ABSENT}", survey.problem]
    else:
        said = [f"GPU {ABSENT} is not there", *(gpu.uuid for gpu in survey.gpus)]
    lines = [line for line in told.splitlines() if all(part in line for part in said)]
    assert lines and "correct SCENEFLEET_GPUS" in lines[-1], told
    assert "Traceback" not in told and "child ready" not in told
    assert waiting(fleet) == {"text.online": 1, "text": 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_naming_one_the_same_model_runs_on_the_cpu(fleet: Fleet, environment: dict[str, str]) -> None:
    """What makes the other tests mean something: only the name of the GPU is the difference."""
    fleet.start("text", **{name: environment[name] for name in MODELS})
    fleet.wait_ready("text")
    assert '"device": "cpu"' in fleet.node_states()["text"]["models"]


def test_up_shows_which_node_has_no_gpu(environment: dict[str, str], tmp_path: Path) -> None:
    """Two nodes of one family on GPUs of their own, under the real process runner; the others run."""
    machine = Machine(tmp_path / "home of up")
    wanted = {**{name: environment[name] for name in MODELS}, "SCENEFLEET_NODES": "search,text@98,text@99"}
    try:
        machine.run("up", "--detach", status=1, **wanted)
        said = " ".join((machine.home.logs / "up.log").read_text().split())
        assert "search ready" in said
        for name, device in (("text", "98"), ("text-2", "99")):
            log = (machine.home.logs / f"{name}.log").read_text()
            assert f"CUDA_VISIBLE_DEVICES='{device}'" in log or f"GPU {device} is not there" in log
            assert f"{name} failed: " in said
        report = json.loads(machine.run("doctor", "--json", status=1, **wanted).stdout)
        states = {check["check"]: check["state"] for check in report["checks"]}
        assert (states["plan GPU 98"], states["plan GPU 99"]) == ("fail", "fail")
        assert {process["node"] for process in report["plan"]["processes"]} == {"search", "text", "text-2"}
        machine.run("down")
    finally:
        machine.clean()
