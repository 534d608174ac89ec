"""Stand-ins for images that can't be pulled here, under the very names that the compose file and the Dockerfile use.

They let the files run where no registry is reached: Debian made by debootstrap in place of the Python image, and, on top of
it, PostgreSQL with pgvector from a wheel, Debian's Redis, and OpenStack Swift in place of MinIO. What they can't show is
that the real images start with these settings.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.deploy.engine import ROOT, STANDIN, Engine, run

FILES = Path(__file__).parent / "standins"
DEBIAN = "bookworm"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"


def provide(engine: Engine, base: str, servers: dict[str, str]) -> list[str]:
    """Have the Python image and the servers' here, pulled or made, now or earlier; returns which are stand-ins."""
    missing = [name for name in (base, *servers.values()) if not engine.pull(name)]
    if missing and engine.name != "podman":
        pytest.fail(f"{', '.join(missing)} can't be pulled; stand-ins need podman")
    if base in missing or (missing and not engine.has_image(base)):
        make_base(engine, base)
    for service, image in servers.items():
        if image in missing:
            make_server(engine, service, image, base)
    return [name for name in (base, *servers.values()) if engine.is_standin(name)]


def make_base(engine: Engine, image: str) -> None:
    """Debian with its Python, where the Python image was meant."""
    if shutil.which("debootstrap") is None:
        pytest.fail(f"{image} can't be pulled, and debootstrap is not installed to make a stand-in")
    with TemporaryDirectory(prefix="standin-") as folder:
        run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, folder], timeout_s=1200)
        root = Path(folder)
        (root / "usr/bin/python").symlink_to("python3")
        for cache in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(root / cache)
            (root / cache / "partial").mkdir(parents=True)
        with subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE) as packer:
            # Not by `Engine.call`, which gives no standard input.
            subprocess.run(
                [engine.name, "import", "--quiet", "--change", f"LABEL {STANDIN}=true", "-", image],
                stdin=packer.stdout,
                stdout=subprocess.DEVNULL,
                env=engine.environment,
                check=True,
                timeout=600,
            )


def make_server(engine: Engine, service: str, image: str, base: str) -> None:
    """A server's stand-in, from its Containerfile and the files it copies."""
    with TemporaryDirectory(prefix="standin-") as folder:
        context = Path(folder)
        shutil.copytree(FILES, context, dirs_exist_ok=True)
        shutil.copy(ROOT / "tests" / "support" / "swift_server.py", context)
        engine.build(image, FILES / f"Containerfile.{service}", context, BASE=base)
