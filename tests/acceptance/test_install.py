"""The wheel as an API installs it: base dependencies only, no checkout, no engine; and the page that comes in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from playwright.sync_api import expect

from tests.acceptance.commands import run_command
from tests.support.assets import give_up
from tests.support.browser import Watched, open_browser
from tests.support.fleet import ROOT
from tests.support.services import PostgresServer
from tests.unit.test_imports import DATABASE, ENGINES

#: Files of web/ that no browser loads.
TOOLS = {".npmrc", "eslint.config.js", "jsconfig.json", "package.json", "package-lock.json", "vendor.py"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("hatchling") is None:
        give_up("hatchling is not installed: the wheel can't be built without network")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--disable-pip-version-check",
               "-q", "-w", str(folder), str(ROOT)]  # fmt: skip
    run_command(command, os.environ, timeout_s=200)
    (found,) = folder.glob("*.whl")
    return found


def needed(requirements: list[str], extras: frozenset[str] = frozenset()) -> Iterator[Distribution]:
    """The installed distributions behind some requirements, and theirs."""
    todo = [(Requirement(text), extras) for text in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement, extras = todo.pop()
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        key = (requirement.name.lower(), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        # One that is required and not installed here raises PackageNotFoundError.
        yield (found := distribution(requirement.name))
        todo += [(Requirement(text), frozenset(requirement.extras)) for text in found.requires or []]


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with the wheel's base install."""
    return install(wheel, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def with_api(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with the wheel and its extra `api`."""
    return install(wheel, tmp_path_factory.mktemp("with_api"), "api")


def install(wheel: Path, folder: Path, *extras: str) -> Path:
    """Make an environment with the wheel and what its metadata asks for, linked from this one; returns its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q"]
    run_command([*command, "--disable-pip-version-check", wheel], os.environ)
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    requirements = [line.split(":", 1)[1].strip() for line in lines if line.startswith("Requires-Dist:")]
    for found in needed(requirements, frozenset(extras)):
        for top in {Path(file).parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(str(found.locate_file(top)))
    return python


def run(program: Path, *arguments: str, cwd: Path, **environment: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), **environment}
    return run_command([program, *arguments], environment, cwd=cwd).stdout


def loaded(python: Path, code: str, cwd: Path) -> set[str]:
    """The top packages that the code imports."""
    code += "\nimport sys, json\nprint(json.dumps([m.split('.')[0] for m in sys.modules]))"
    return set(json.loads(run(python, "-c", code, cwd=cwd).splitlines()[-1]))


def test_what_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert names >= {
        "worker/models.yaml", "db/migrations/env.py", "db/migrations/versions/0001_create_the_tables.py",
        "shared/client.py", "scenefleet/client.py", "scenefleet/storage/keys.py", "tasks/video.py", "cli/main.py",
    }  # fmt: skip
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "api", "cli", "db", "local", "shared", "tasks", "worker", "scenefleet"
    }  # fmt: skip
    page = {name.removeprefix("api/") for name in names if name.startswith("api/web/")}
    files = {path.relative_to(ROOT) for path in (ROOT / "web").rglob("*") if path.is_file()}
    assert page == {
        str(path) for path in files if "node_modules" not in path.parts and path.name not in TOOLS
    }
    assert not [name for name in names if name.endswith((".pyc", ".so", ".mp4", ".onnx", ".log"))]
    assert any(name.endswith("/LICENSE") for name in names)
    copies = {name.removeprefix("shared/") for name in names if name.startswith("shared/")}
    assert copies == {name.removeprefix("scenefleet/") for name in names if name.startswith("scenefleet/")}


def test_a_wheel_of_the_source_archive_is_the_same(wheel: Path, tmp_path: Path) -> None:
    """Also if the page's tools are installed where the archive is made, or where it is unpacked."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", tmp_path, "-t"]
    run_command([*command, "sdist"], os.environ)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        assert not [
            name for name in packed.getnames() if {"node_modules", ".venv", ".env"} & {*Path(name).parts}
        ]
        packed.extractall(tmp_path, filter="data")
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    (unpacked / ".gitignore").unlink()
    stray = unpacked / "web" / "node_modules" / "lit" / "index.js"
    stray.parent.mkdir(parents=True)
    stray.write_text("")
    run_command([*command, "wheel"], os.environ, cwd=unpacked)
    (rebuilt,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(rebuilt) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


def test_the_page_comes_with_the_wheel(with_api: Path, tmp_path: Path) -> None:
    """All of it, from the installed files, in a browser that asks no other server."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "SCENEFLEET_HOME": str(tmp_path / "home"),
    }
    log = tmp_path / "api.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [with_api.with_name("scenefleet"), "api"],
            cwd=tmp_path,
            env={**environment, "API_PORT": "0", "REDIS_URL": "redis://127.0.0.1:1/0"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found is not None, log.read_text()
        url = found[0]
        asked: dict[str, int] = {}
        with open_browser() as browser:
            watched = Watched(browser, url)
            watched.context.on("response", lambda got: asked.update({got.url: got.status}))
            watched.page.goto("/")
            expect(watched.page.get_by_role("searchbox")).to_be_visible()
            for view in ("Library", "People"):
                watched.page.get_by_role("link", name=view).first.click()
                expect(watched.page.get_by_role("main")).to_be_visible()
            watched.context.close()
    finally:
        # A stop would wait for answers of the Redis that is not there.
        process.kill()
        process.wait(timeout=30)
    files = {address: status for address, status in asked.items() if "/api/" not in address}
    assert {address for address in asked if not address.startswith(url)} == set()
    assert len(files) > 10 and set(files.values()) == {200}
    assert watched.complaints == []


def test_the_base_install_has_no_engine(base: Path, tmp_path: Path) -> None:
    code = f"import importlib.util as u\nprint([n for n in {ENGINES!r} if u.find_spec(n) is not None])"
    assert run(base, "-c", code, cwd=tmp_path).strip() == "[]"


@pytest.mark.parametrize("name", ["shared", "scenefleet"])
def test_the_client_works_under_both_names(base: Path, tmp_path: Path, name: str) -> None:
    code = (
        f"from {name}.client import Client\nfrom {name}.errors import BrokerUnavailable, InvalidRequest\n"
        "client = Client('redis://127.0.0.1:1/0', timeout_s=2)\n"
        "try: client.status('v', 'u')\n"
        "except BrokerUnavailable as error: assert 'Redis does not answer' in str(error), error\n"
        "try: client.status('../v', 'u')\n"
        "except InvalidRequest as error: assert 'video_id=' in str(error), error"
    )
    found = loaded(base, code, tmp_path)
    assert not found & {*ENGINES, *DATABASE, "numpy", "db", "tasks", "worker", "cli"}
    assert not found & ({"shared", "scenefleet"} - {name})


def test_an_api_with_the_same_package_names_is_not_disturbed(base: Path, tmp_path: Path) -> None:
    for package in ("shared", "tasks", "worker", "db", "cli"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"WHOSE = 'the api'\nNAME = {package!r}\n")
    (tmp_path / "api.py").write_text(
        "import shared, tasks, worker, db, cli\n"
        "from scenefleet.client import Client\n"
        "from scenefleet.storage import upload_key\n"
        "import scenefleet.contracts, scenefleet.sidecar, scenefleet.settings\n"
        "assert {m.WHOSE for m in (shared, tasks, worker, db, cli)} == {'the api'}\n"
        "Client('redis://127.0.0.1:1/0')\n"
        "print(upload_key('u', 'v', 'a film.mp4'))\n"
    )
    code = "import sys; sys.path.insert(0, ''); import api"
    assert run(base, "-c", code, cwd=tmp_path) == "uploads/u/v/a film.mp4\n"


def test_the_tasks_can_be_imported_without_an_engine(base: Path, tmp_path: Path) -> None:
    """Flower and `celery inspect` need no more than the base install."""
    code = (
        "import tasks.video, tasks.jobs, tasks.search, tasks.text, worker.app\n"
        "worker.app.app.loader.import_default_modules()\n"
        "assert 'tasks.video.process' in worker.app.app.tasks"
    )
    assert not loaded(base, code, tmp_path) & set(ENGINES)


def test_the_command_helps(base: Path, tmp_path: Path) -> None:
    shown = run(base.with_name("scenefleet"), "--help", cwd=tmp_path, COLUMNS="120")
    wanted = "up down index status scenes search retry rerun cancel delete doctor"
    assert set(wanted.split()) <= set(re.findall(r"\w+", shown)), shown


def test_the_installed_package_migrates_a_database(
    base: Path, tmp_path: Path, postgres: PostgresServer
) -> None:
    postgres.execute("CREATE DATABASE installed")
    try:
        url = postgres.url("installed")
        run(base.with_name("scenefleet"), "db", "upgrade", cwd=tmp_path, POSTGRES_URL=url)
        code = "from db import schema; print(schema.current_revision() == schema.head_revision(), schema.__file__)"
        answer, where = run(base, "-c", code, cwd=tmp_path, POSTGRES_URL=url).split()
        assert answer == "True" and str(base.parents[1]) in where
    finally:
        postgres.execute("DROP DATABASE installed WITH (FORCE)")


def test_the_catalogue_is_found(base: Path, tmp_path: Path) -> None:
    code = "from worker.models.catalog import load_catalog; print(*load_catalog().profiles())"
    assert "lite" in run(base, "-c", code, cwd=tmp_path).split()
