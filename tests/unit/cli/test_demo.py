"""Where the demo leaves its video, and what it says of that."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from cli import demo
from local.home import Home, configured_settings

pytestmark = pytest.mark.usefixtures("bare")


def told() -> tuple[Path, list[str]]:
    configured = configured_settings()
    home = demo.choose_home(configured)
    return home, demo.next_steps(configured, home, "a hot drink")


def test_the_next_up_has_the_video(tmp_path: Path) -> None:
    home, (_, command, address) = told()
    assert home == tmp_path / "home"
    assert command.strip() == "make up"
    assert address == "then open http://127.0.0.1:8080/?q=a+hot+drink"


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("POSTGRES_URL", "postgresql://db.example/archive", ""),
        ("REDIS_URL", "redis://redis.example/0", ""),
        ("SCENEFLEET_PROFILE", "full", "lite"),
        ("STORAGE_BACKEND", "minio", "local"),
        ("STORAGE_ROOT", "/srv/archive", ""),
    ],
)
def test_another_archive_gets_no_sample(
    name: str, value: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    home, (_, command, _) = told()
    assert home == Path(".scenefleet/demo").absolute()
    assert shlex.split(command) == [f"{name}={instead}", f"SCENEFLEET_HOME={home}", "make", "up"]


def test_a_running_fleet_is_left_alone(tmp_path: Path) -> None:
    running = Home(configured_settings())
    running.acquire()
    try:
        home, (_, command, _) = told()
    finally:
        running.release()
    assert home == Path(".scenefleet/demo").absolute()
    assert f"SCENEFLEET_HOME={home}" in shlex.split(command)


def test_without_the_page_no_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENEFLEET_NODES", "media,search")
    assert not any("open" in line for line in told()[1])
    monkeypatch.setenv("SCENEFLEET_NODES", "media,search,api")
    monkeypatch.setenv("API_PORT", "0")
    assert told()[1][-1] == "then open the address that it prints"
