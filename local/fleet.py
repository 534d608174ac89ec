"""Everything ``scenefleet up`` runs on this machine: embedded services where no URL is set, the schema, the nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from local import node_plan, orphans, process_runner
from local.home import Home
from local.node_plan import API
from local.process_runner import Program, ProgramState, Supervisor
from local.servers import postgres, redis_server
from local.servers.ports import find_free_port
from shared import addresses, nodes
from shared.broker import celery_url
from shared.errors import BrokerUnavailable, InvalidRequest, Outage
from shared.exit_status import ExitStatus
from shared.settings import Settings, child_environment, get_settings
from worker.models.placement.plan import PlannedNode

#: Seconds a stopping node gets beyond the time its running job may go on.
STOP_GRACE_S = 20
STOP_SERVER_S = 60
#: Above the time that open requests get to end (api/server.py).
STOP_API_S = 15
HURRIED_STOP_S = 2.0
NODE_GROUP = "nodes"

#: Reports progress to people.
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class NodeView:
    """State of a node, as ``up`` shows it."""

    name: str
    family: str
    #: The GPU of each of its processes; empty: it was given none.
    devices: tuple[str, ...]
    #: starting, loading, ready, restarting, failed (model can't be loaded), stopped
    state: str
    detail: str
    models: tuple[str, ...]
    pid: int
    log: str

    @property
    def settled(self) -> bool:
        """Whether waiting longer changes nothing."""
        return self.state in ("ready", "failed", "stopped")


class Fleet:
    """The nodes and embedded services of one home folder: starts, watches and stops them."""

    def __init__(self, settings: Settings) -> None:
        self.home = Home(settings)
        self._configured = settings
        self.settings = settings
        self.plan: list[PlannedNode] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: Supervisor | None = None
        self._socket: Path | None = None
        self._redis_socket: Path | None = None
        self._hurried = False
        #: Where the API of this fleet answers; None: it runs none.
        self.api_url: str | None = None

    @property
    def embedded(self) -> list[str]:
        """Names of the services that run here because no URL is set."""
        names = {"postgres": self._configured.postgres_url, "redis": self._configured.redis_url}
        return [name for name, url in names.items() if not url]

    def start(self, say: Report) -> None:
        """Start everything; when it returns the nodes are being started. Whatever happens, call ``stop`` after.

        Raises:
            Conflict: another ``up`` runs in this home folder.
            InvalidRequest: something is missing on this machine; says what to install.
            Outage: a service does not answer.
        """
        self.plan = plan_nodes(self._configured)
        if "postgres" in self.embedded:
            postgres.find_binaries()
        if "redis" in self.embedded:
            redis_server.find_server()
        self.home.acquire()
        self._choose_api_port(say)
        if cleaned := orphans.stop(self.home):
            say(f"stopped {cleaned} processes that an earlier, killed `up` had left")
        self.home.remove_run()
        for record in (self.home.root / "work").glob("*.starts"):
            record.unlink()
        run = self._start_services(say)
        self.home.write_run(run)
        get_settings.cache_clear()
        self.settings = get_settings()
        self._prepare(say)
        self._control().start_group(NODE_GROUP)
        if self.api_url is not None:
            self._control().start_group(API)

    def _start_services(self, say: Report) -> dict[str, object]:
        home = self.home
        run: dict[str, object] = {"pid": os.getpid()}
        programs = [self._node_program(node) for node in self.plan]
        extra = {}
        if self.api_url is not None:
            programs.append(self._api_program())
            extra["API_PORT"] = str(urlsplit(self.api_url).port)
            run["api_url"] = self.api_url
        port = find_free_port()
        if "postgres" in self.embedded:
            if not (home.postgres / "PG_VERSION").is_file():
                say("setting up Postgres")
            postgres.prepare(home.postgres, home.secret("postgres"), home.logs / "postgres.log")
            programs.append(
                Program(
                    name="postgres",
                    command=tuple(postgres.server_command(home.postgres, port)),
                    cwd=home.postgres,
                    priority=10,
                    # "Fast" shutdown: TERM would wait for every client to leave.
                    stop_signal="INT",
                    stop_wait_s=STOP_SERVER_S,
                )
            )
        if "redis" in self.embedded:
            self._redis_socket = process_runner.socket_path(home.redis, redis_server.SOCKET)
            redis_server.prepare(home.redis, self._redis_socket, home.secret("redis"))
            programs.append(
                Program(
                    name="redis",
                    command=tuple(redis_server.server_command()),
                    cwd=home.redis,
                    priority=20,
                    stop_wait_s=STOP_SERVER_S,
                )
            )
        self._socket = process_runner.socket_path(home.root, process_runner.SOCKET)
        home.supervisor_config.write_text(process_runner.render_config(self._socket, programs))
        environment = child_environment(
            **{orphans.MARK: str(home.root), "SCENEFLEET_HOME": str(home.root), **extra}
        )
        self._process = process_runner.start(home.supervisor_config, environment)
        self._supervisor = Supervisor(self._socket)
        self._supervisor.wait(self._process, home.logs / "supervisor.err")
        if "postgres" in self.embedded:
            log = home.logs / "postgres.log"
            run["postgres_url"] = postgres.wait_until_ready(
                port, home.secret("postgres"), home.secret("scenefleet"), log=log
            )
        if self._redis_socket is not None:
            log = home.logs / "redis.log"
            url = redis_server.server_url(self._redis_socket, home.secret("redis"))
            run["redis_url"] = redis_server.wait_until_ready(url, log=log)
            # The same for programs that have Celery and nothing of ours.
            run["broker_url"] = self._configured.broker_url or celery_url(url)
        if self.embedded:
            say(f"{' and '.join(self.embedded)} answer on this machine, data in {home.root}")
        return run

    def _prepare(self, say: Report) -> None:
        """Upgrade the schema, create the buckets, and check that Redis answers."""
        from db import schema
        from db.engine import set_engine
        from shared.storage import configured_storage

        nodes.read_nodes(self.settings.redis_url)
        set_engine(None)
        before = schema.current_revision()
        schema.upgrade()
        if before != schema.head_revision():
            say(f"database schema upgraded to {schema.head_revision()}")
        configured_storage(self.settings).ensure_buckets()

    def _node_program(self, node: PlannedNode) -> Program:
        starts = str(self.home.root / "work" / f"{node.name}.starts")
        gpus = ("--gpu", ",".join(node.devices)) if node.devices else ()
        command = (sys.executable, "-m", "cli", "node", node.family, "--name", node.name)
        return Program(
            name=node.name,
            command=(*command, "-c", str(node.processes), *gpus, "--starts", starts),
            cwd=Path.cwd(),
            priority=100,
            stop_wait_s=int(self._configured.soft_shutdown_s) + STOP_GRACE_S,
            autostart=False,
            group=NODE_GROUP,
        )

    def _choose_api_port(self, say: Report) -> None:
        """Decide whether the API runs here, and where.

        Raises:
            Conflict: its port is taken.
            InvalidRequest: its address is not acceptable.
        """
        settings = self._configured
        if not node_plan.names_api(settings.nodes):
            return
        if find_spec("fastapi") is None or find_spec("uvicorn") is None:
            say('no page: the HTTP API is not installed, `pip install ".[api]"` does it')
            return
        addresses.check_address(settings)
        with addresses.listen(settings.api_host, settings.api_port) as probe:
            self.api_url = addresses.address_of(probe)

    def _api_program(self) -> Program:
        return Program(
            name=API,
            command=(sys.executable, "-m", "cli", "api"),
            cwd=Path.cwd(),
            priority=200,
            stop_wait_s=STOP_API_S,
            autostart=False,
        )

    def _control(self) -> Supervisor:
        assert self._supervisor is not None, "the fleet is not started"
        return self._supervisor

    def view(self) -> tuple[list[NodeView], dict[str, bool]]:
        """The state of every node, and of each embedded service and the API whether it runs.

        Raises:
            Outage: the process runner ended; everything has to be stopped.
        """
        if self._process is not None and self._process.poll() is not None:
            raise Outage(f"the process runner ended: read {self.home.logs / 'supervisor.log'}")
        states = self._control().states()
        try:
            records = nodes.read_nodes(self.settings.redis_url)
        except BrokerUnavailable:
            records = {}
        views = [
            _view(self.home.root, node, states[node.name], records.get(nodes.node_name(node.name)))
            for node in self.plan
        ]
        services = [*self.embedded, *([API] if self.api_url else [])]
        return views, {name: states[name].state == "RUNNING" for name in services}

    def stop(self) -> None:
        """Stop nodes, then Redis, then Postgres; remove the run file; leave nothing running."""
        if self._process is not None:
            self._process.terminate()
            limit_s = self._configured.soft_shutdown_s + STOP_GRACE_S + 2 * STOP_SERVER_S
            try:
                self._process.wait(timeout=limit_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if not self.home.owned:
            return
        orphans.stop(self.home, HURRIED_STOP_S if self._hurried else orphans.STOP_LIMIT_S)
        self.home.remove_run()
        for socket in (self._socket, self._redis_socket):
            if socket is not None:
                process_runner.remove_socket(socket, self.home.root)
        self.home.release()
        get_settings.cache_clear()

    def hurry(self) -> None:
        """Kill the process runner, so that a ``stop`` in another thread ends at once; interrupted jobs run again later."""
        self._hurried = True
        if self._process is not None:
            self._process.kill()


def plan_nodes(settings: Settings) -> list[PlannedNode]:
    """Which nodes run here, with how many processes and on which GPUs.

    Raises:
        InvalidRequest: SCENEFLEET_NODES or SCENEFLEET_GPUS is not acceptable, or what nodes need is not installed.
    """
    try:
        from worker.models.catalog import configured_catalog
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f'{error.name} is not installed: run `make install` in the checkout, or `pip install ".[lite,embedded]"`'
        ) from None
    models = configured_catalog(settings).active(settings)
    return node_plan.parse_plan(settings.nodes, set(models), settings.gpu_list)


def _view(root: Path, node: PlannedNode, program: ProgramState, record: nodes.NodeRecord | None) -> NodeView:
    # A record of an earlier process of this name may live on for some seconds.
    fresh = record if record is not None and record.pid == program.pid else None
    models: tuple[str, ...] = ()
    detail = ""
    if program.state == "EXITED" and program.exit_status == ExitStatus.CONFIG:
        state, detail = "failed", last_error(root / program.log)
    elif program.state in ("STOPPED", "FATAL", "STOPPING"):
        state = "starting" if not program.started_at_s else "stopped"
    elif program.state in ("BACKOFF", "EXITED"):
        state, detail = "restarting", f"ended; read {program.log}"
    elif fresh is None:
        state = "starting"
        if program.started_at_s:
            detail = f"{max(0, int(time.time()) - program.started_at_s)} s"
    else:
        state, detail, models = fresh.state, fresh.error, fresh.models
    return NodeView(
        name=node.name,
        family=node.family,
        devices=node.devices,
        state=state,
        detail=detail,
        models=models,
        pid=program.pid,
        log=program.log,
    )


def last_error(log: Path) -> str:
    """Why a node left, by its log."""
    reason = f"read {log}"
    try:
        lines = log.read_bytes()[-65536:].decode(errors="replace").splitlines()
    except OSError:
        return reason
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("level") == "error" and record.get("failure"):
            return str(record["failure"])
    return reason
