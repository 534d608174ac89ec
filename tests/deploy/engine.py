"""The program that runs containers: Docker with Compose, or Podman with podman-compose, behind the few calls the tests need."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
#: The label of images that stand in for others; what is built on one has it too.
STANDIN = "scenefleet.stand-in"
#: Podman's settings where no systemd runs. crun does not start there on a machine with both versions of cgroups.
PODMAN_WITHOUT_SYSTEMD = """
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4000:4000"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
"""


def run(
    command: Sequence[str], *, check: bool = True, timeout_s: float = 600, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; a failure shows what it printed."""
    how = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, **how}
    done = subprocess.run(command, timeout=timeout_s, **how)
    if check and done.returncode != 0:
        said = (done.stdout + done.stderr)[-6000:]
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
    return done


class Engine:
    """Docker. Subclassed where Podman differs."""

    name = "docker"
    compose_program: tuple[str, ...] = ("docker", "compose")
    #: Whether Compose itself waits for health and for one-shots to end.
    waits = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = dict(os.environ)

    def call(self, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run the engine's own command."""
        return run([self.name, *arguments], env=self.environment, **how)

    def build(self, image: str, file: Path, context: Path, **arguments: str) -> None:
        """Build an image from a Dockerfile."""
        words = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        command = ("build", *self.build_options(), "--file", str(file), "--tag", image, *words, str(context))
        self.call(*command, timeout_s=3600)

    def build_options(self) -> list[str]:
        return []

    def adapt(self, text: str) -> str:
        """The compose file as this engine understands it."""
        return text

    def is_standin(self, image: str) -> bool:
        """Whether an image was made by tests/deploy/standins.py."""
        (found,) = json.loads(self.call("image", "inspect", image).stdout)
        return STANDIN in (found["Config"].get("Labels") or {})

    def has_image(self, image: str) -> bool:
        return self.call("image", "inspect", image, check=False).returncode == 0

    def pull(self, image: str) -> bool:
        """Fetch an image, and say whether it is here."""
        return self.has_image(image) or self.call("pull", "--quiet", image, check=False).returncode == 0

    def inspect(self, container: str) -> dict[str, Any]:
        (found,) = json.loads(self.call("inspect", "--type", "container", container).stdout)
        return dict(found)

    def is_healthy(self, container: str) -> bool:
        return bool(self.inspect(container)["State"].get("Health", {}).get("Status") == "healthy")


class Podman(Engine):
    name = "podman"
    compose_program = ("podman-compose",)
    waits = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        #: Its timers run the health checks; without it they have to be run by hand.
        self.has_systemd = Path("/run/systemd/private").exists()
        if not self.has_systemd and not Path("/etc/containers/containers.conf").exists():
            settings = folder / "containers.conf"
            settings.write_text(PODMAN_WITHOUT_SYSTEMD)
            self.environment["CONTAINERS_CONF"] = str(settings)

    def build_options(self) -> list[str]:
        """What this machine's pip reads is there while it builds."""
        files = [word for path in host_files() for word in ("--volume", f"{path}:{path}:ro")]
        return ["--isolation", "chroot", "--network", "host", "--format", "docker", "--layers", *files]

    def adapt(self, text: str) -> str:
        """Podman 4 knows no quicker checks while a container starts."""
        return "".join(line for line in text.splitlines(keepends=True) if "start_interval:" not in line)

    def is_healthy(self, container: str) -> bool:
        """By the container's own check, run from here: without systemd nothing does, and `podman healthcheck run` may hang."""
        kind, *words = self.inspect(container)["Config"]["Healthcheck"]["Test"]
        command = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        try:
            return self.call("exec", container, *command, check=False, timeout_s=60).returncode == 0
        except subprocess.TimeoutExpired:
            return False


def host_files() -> list[Path]:
    """What pip is configured by on this machine, if anything: its files, and every file and folder they name."""
    pip_config = (sys.executable, "-m", "pip", "config")
    files = re.findall(r"^\s*(.+), exists: True$", run([*pip_config, "debug"], check=False).stdout, re.M)
    values = run([*pip_config, "list"], check=False).stdout.replace("'", " ").split()
    words = [*files, *(value.removeprefix("file://").removesuffix("/simple") for value in values)]
    return sorted({Path(word) for word in words if word.startswith("/") and Path(word).exists()})


def find_engine(folder: Path) -> Engine:
    """The engine of this machine; the test fails where there is none, as it was asked for by name."""
    if shutil.which("docker") and run(["docker", "compose", "version"], check=False).returncode == 0:
        return Engine(folder)
    if shutil.which("podman") and shutil.which("podman-compose"):
        return Podman(folder)
    pytest.fail(
        "no container engine is here: install Docker with Compose, or podman, buildah and podman-compose"
    )


class Deployment:
    """docker-compose.yml, started whole in a project of its own, whose folder has the file and a .env of ``values``."""

    #: The order in which services start, where Compose does not wait by itself.
    STAGES = (("postgres", "redis", "minio"), ("bootstrap", "buckets"), ("migrate",))

    def __init__(self, engine: Engine, folder: Path, values: dict[str, str], project: str) -> None:
        self.engine, self.folder, self.values, self.project = engine, folder, values, project
        folder.mkdir(parents=True, exist_ok=True)
        text = (ROOT / "docker-compose.yml").read_text()
        (folder / "docker-compose.yml").write_text(engine.adapt(text))
        (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))

    def compose(self, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in self.engine.environment.items() if name not in self.values}
        profile = self.values.get("COMPOSE_PROFILES")
        options = [*(["--profile", profile] if profile else []), "--project-name", self.project]
        command = [*self.engine.compose_program, *options, *arguments]
        return run(command, cwd=self.folder, env=clean, **how)

    def container(self, service: str) -> str:
        """The name of a service's container."""
        joint = "-" if self.engine.name == "docker" else "_"
        return joint.join((self.project, service, "1"))

    def up(self, services: Sequence[str]) -> None:
        """Start services, the servers and one-shots before the others."""
        if self.engine.waits:
            self.compose("up", "--detach", "--no-build", timeout_s=1200)
            return
        for stage in self.STAGES:
            self.compose("up", "--detach", "--no-build", "--no-deps", *stage, timeout_s=600)
            for service in stage:
                if service in ("bootstrap", "buckets", "migrate"):
                    self.wait_done(service)
                else:
                    self.wait_healthy([service], within_s=120)
        rest = [name for name in services if not any(name in stage for stage in self.STAGES)]
        self.compose("up", "--detach", "--no-build", "--no-deps", *rest, timeout_s=1200)

    def wait_done(self, service: str, within_s: float = 180) -> None:
        """Until a one-shot has ended well."""
        deadline = time.monotonic() + within_s
        while (state := self.engine.inspect(self.container(service))["State"])["Status"] != "exited":
            assert time.monotonic() < deadline, f"{service} has not ended: {self.logs(service)}"
            time.sleep(0.5)
        assert state["ExitCode"] == 0, f"{service}: {self.logs(service)}"

    def wait_healthy(self, services: Sequence[str], within_s: float = 420) -> None:
        deadline = time.monotonic() + within_s
        for service in services:
            while not self.engine.is_healthy(self.container(service)):
                assert time.monotonic() < deadline, f"{service} is not healthy: {self.logs(service)}"
                time.sleep(1)

    def has_stopped(self, service: str) -> bool:
        return not self.engine.inspect(self.container(service))["State"]["Running"]

    def logs(self, service: str) -> str:
        done = self.engine.call("logs", "--tail", "60", self.container(service), check=False)
        return done.stdout + done.stderr

    def inside(self, service: str, *command: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in a service's container."""
        return self.engine.call("exec", self.container(service), *command, **how)

    def down(self) -> None:
        """Remove containers, networks and volumes."""
        self.compose("down", "--volumes", "--timeout", "10", check=False)
