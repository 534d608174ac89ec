"""Become a Celery worker node (``scenefleet node FAMILY``), and check that one is ready (``node-health``)."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from local import node_plan
from local.restart_backoff import pause_s
from shared import graph, nodes, permissions, routing
from shared.errors import InvalidRequest, Outage
from shared.settings import child_environment, get_settings


def check_family(family: str) -> str:
    """Check the name of a family.

    Raises:
        InvalidRequest: there is no such family.
    """
    if family not in routing.NODES:
        raise InvalidRequest(f"there is no family {family!r}: use one of {', '.join(routing.NODES)}")
    return family


def celery_command(family: str, instance: str, concurrency: int, log_level: str) -> list[str]:
    """The worker's command line.

    It starts on its private gate queue only and takes its real queues once its model is loaded. No mingle and no
    gossip: nodes don't exchange state. Heartbeats stay: Flower shows them as "online".
    """
    return [
        *(sys.executable, "-m", "celery", "-A", "worker.app", "worker"),
        *("-n", f"{instance}@%h"),
        *("-Q", routing.gate_queue(family)),
        *("--pool", "prefork", "-c", str(concurrency)),
        *("--without-mingle", "--without-gossip"),
        # Celery's default of 2 s is a part of what an idle node costs.
        *("--heartbeat-interval", "10"),
        *("-l", log_level),
    ]


def node_environment(family: str, devices: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment that Celery and the models' libraries need before they are imported.

    A node with one process sees its GPU from the start; the processes of a larger one each choose theirs (`worker.models.placement.devices`).
    """
    pinned = {"CUDA_VISIBLE_DEVICES": devices[0]} if len(devices) == 1 else {}
    return child_environment(
        **pinned,
        SCENEFLEET_FAMILY=family,
        SCENEFLEET_GPUS=",".join(devices),
        # Indices as nvidia-smi counts them; CUDA by itself puts the fastest first.
        CUDA_DEVICE_ORDER="PCI_BUS_ID",
        # TERM lets a running job go on for `soft_shutdown_s` and then gives it back; Celery's own TERM waits for ever.
        REMAP_SIGTERM="SIGQUIT",
        # Weights come from packages or MODELS_DIR; a node never asks a model hub.
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        # The tokenizer's threads don't survive the fork of the pool.
        TOKENIZERS_PARALLELISM="false",
        # Waiting OpenMP threads would spin and starve the other nodes of this machine.
        OMP_WAIT_POLICY="PASSIVE",
        PYTHONUNBUFFERED="1",
    )


def choose_devices(family: str, gpu: str | None, gpus: tuple[str, ...]) -> tuple[str, ...]:
    """The GPUs of a node: those asked for, else those of SCENEFLEET_GPUS if the family has a model.

    Raises:
        InvalidRequest: a name that no GPU has, or a family that needs none.
    """
    if gpu is not None:
        devices = tuple(device.strip() for device in gpu.split(","))
        node_plan.check_devices(family, devices, f"--gpu {gpu}")
        return devices
    if not routing.NODES[family].has_model:
        return ()
    node_plan.check_devices(family, gpus, f"SCENEFLEET_GPUS={','.join(gpus)}")
    return gpus


def run(
    family: str,
    name: str | None,
    concurrency: int | None = None,
    gpu: str | None = None,
    starts: Path | None = None,
) -> None:
    """Replace this process by the node; never returns. With ``starts``, a record of its starts, it waits before a restart.

    Raises:
        InvalidRequest: no such family, invalid GPUs, or no server is configured.
    """
    settings = get_settings()
    graph.PLUGINS.require_all()
    check_family(family)
    devices = choose_devices(family, gpu, settings.gpu_list)
    processes = node_plan.count_processes(family, concurrency, devices, f"scenefleet node {family}")
    settings.require("redis_url")
    settings.require("postgres_url")
    if settings.run_file.is_file():
        permissions.require_private(settings.home, "SCENEFLEET_HOME")
    if settings.storage_backend == "local":
        permissions.require_private(settings.storage_dir, "STORAGE_ROOT")
    command = celery_command(family, name or family, processes, settings.log_level)
    if starts is not None and (wait_s := pause_s(starts, time.time())):
        print(f"node {name or family} keeps ending: starting it in {wait_s:g} s", flush=True)
        time.sleep(wait_s)
    permissions.keep_private()
    os.execvpe(command[0], command, node_environment(family, devices))


def health(family: str, name: str | None) -> None:
    """Return quietly when a node of the family on this host is ready.

    Raises:
        Outage: it is not; says how it is instead.
        BrokerUnavailable: Redis does not answer.
    """
    check_family(family)
    records = nodes.read_nodes(get_settings().require("redis_url"))
    host = nodes.node_name("").removeprefix("@")
    mine = [
        record
        for record in records.values()
        if record.family == family
        and record.name.endswith(f"@{host}")
        and (name is None or record.name == nodes.node_name(name))
    ]
    if any(record.state == "ready" for record in mine):
        return
    states = ", ".join(f"{record.name} is {record.state} {record.error}".strip() for record in mine)
    raise Outage(f"no {family} node on {host} is ready: {states or 'none gave a sign of life in 30 s'}")
